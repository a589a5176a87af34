"""What training costs, and how it grows with the data: `python benchmarks/training.py [folder]`.

Caches of latents and of features are built, and a decoder is trained on them, for 1x, 4x and 16x as many pictures. Each
is a process of its own on one core, and its computing time counts: it does not depend on what else runs. Peaks of
memory are those of the processes. Two models: the miniature at 128 pixels, and one of the layout of SD 1.x at 64
pixels, reduced and with random weights. Writes benchmarks/results/training.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch
from writing import write_result

from ldznet_core import load_backbone
from ldznet_core.backbones.base import TorchBackbone
from ldznet_core.backbones.torch_ldm import LDMBackbone
from ldznet_core.checkpoints.ldm import LatentDiffusion
from ldznet_core.data.base import Example
from ldznet_core.decoders.files import DecoderInfo
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.mini.decoders import FEATURE_TEXTS
from ldznet_core.networks.autoencoder import Autoencoder, AutoencoderConfig
from ldznet_core.networks.schedule import Schedule
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig
from ldznet_core.training.cache import LatentCache
from ldznet_core.training.decoder import train_decoder
from ldznet_core.training.features import Draws, FeatureCache
from ldznet_core.training.loop import Plan
from ldznet_core.training.task import Settings

PICTURES, TIMES = 64, (1, 4, 16)
STEPS, BATCH = 8, 8
STAGES = {
    "latents": "pictures a second whose latents are cached",
    "features": "pictures a second whose features are cached (a draw each)",
    "training": "examples a second that LD-ZNet is trained on, with cached latents,",
}


class Squares:
    """Pictures of noise with a square in each, and two phrases a picture; computed when they are asked for."""

    def __init__(self, pictures: int, side: int):
        self.pictures, self.side = pictures, side

    def __len__(self) -> int:
        return 2 * self.pictures

    def __getitem__(self, index: int) -> Example:
        number, second = divmod(index, 2)
        rng = np.random.default_rng(number)
        mask = np.zeros((self.side, self.side), bool)
        top, left = rng.integers(self.side // 2, size=2)
        mask[top : top + self.side // 2, left : left + self.side // 2] = True
        image = rng.integers(0, 128, (self.side, self.side, 3)).astype(np.uint8) + mask[..., None] * np.uint8(127)
        return Example(
            "frog" if second else "square", ~mask if second else mask, image, caption="a square", picture=str(number)
        )


def reduced() -> TorchBackbone:
    """A model of the layout of SD 1.x, a fifth as wide, with random weights."""
    torch.manual_seed(0)
    tokenizer = load_backbone("mini").model.tokenizer
    about = {"name": "SD 1.x, reduced", "num_heads": 8, "text_heads": 2, "size": 64}
    model = LatentDiffusion(
        Autoencoder(AutoencoderConfig(channels=32)),
        ClipText(TextConfig(vocabulary=len(tokenizer.vocabulary), width=64, layers=2, heads=2)),
        UNet(UNetConfig(model_channels=64, context_dim=64)),
        tokenizer, Schedule.stable_diffusion(), about,
    )  # fmt: skip
    for network in (model.vae, model.text, model.unet):
        network.eval().requires_grad_(False)
    return LDMBackbone(model)


MODELS = {
    "miniature, 128 px": (lambda: load_backbone("mini"), 128),
    "SD 1.x reduced, 64 px": (reduced, 64),
}


def measure(model: str, stage: str, times: int, folder: Path) -> dict[str, float]:
    """Computing time for a picture in seconds (of training: for an example), and the peak of memory in bytes."""
    make, side = MODELS[model]
    backbone, dataset = make(), Squares(PICTURES * times, side)
    z = backbone.encode(torch.zeros(1, side, side, 3))  # the first pass of a process takes longer
    backbone.denoise(z, backbone.embed([""]), timestep=400)
    if stage == "latents":
        seconds = built(lambda: LatentCache(folder / "latents", backbone, dataset, side)) / dataset.pictures
    latents = LatentCache(folder / "latents", backbone, dataset, side)
    if stage == "features":
        taps = {tap: backbone.transformer(tap) for tap in backbone.unet_config.taps}
        draws = Draws(FEATURE_TEXTS, count=1)
        seconds = built(lambda: FeatureCache(folder / "features", latents, taps, draws)) / dataset.pictures
    if stage == "training":
        decoder = MaskDecoder(DecoderConfig("ldznet", backbone.unet_config, grid=side // 8))
        decoder.init_from(backbone.model.unet)
        info = DecoderInfo("mini", backbone.prediction)
        settings = Settings(BATCH, BATCH, ("{}", "a {}"), FEATURE_TEXTS)
        start = process_time()
        train_decoder(decoder, backbone, latents, folder / "d.safetensors", Plan(1e-4, steps=STEPS), info, settings)
        seconds = (process_time() - start) / (STEPS * BATCH)
    status = Path("/proc/self/status").read_text()
    peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
    return {"seconds": seconds, "peak": peak}


def built(cache: Callable) -> float:
    """Seconds that a cache takes to build, without those that it takes to open."""
    times = [process_time()]
    for _ in range(2):
        cache()
        times.append(process_time())
    return (times[1] - times[0]) - (times[2] - times[1])


def child(*arguments: str) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def facts(growth: dict[str, dict]) -> dict[str, dict]:
    """What the page of results shows."""
    most = max(one["time of a picture, 16x over 1x"] for one in growth.values())
    counts = ", ".join(f"{PICTURES * times:,}" for times in TIMES)
    last = f"{PICTURES * TIMES[-1]:,}"
    what = f"caches and training: time of a picture with {last} pictures over {PICTURES}, the largest of {len(growth)}"
    shown = {what: {"measured": f"{most:.2f}", "goal": "1.1", "met": most <= 1.1}}
    for stage, what in STAGES.items():
        parts = []
        for model in MODELS:
            one = growth[f"{stage}, {model}"]
            rates, peaks = ", ".join(map(str, one["pictures a second"])), one["peak MiB"]
            parts.append(f"{model}: {rates} (peak {peaks[0]} to {peaks[-1]} MiB)")
        shown[f"{what} with {counts} pictures, one core"] = {"measured": "; ".join(parts)}
    return shown


def main(folder: Path) -> None:
    growth = {}
    for number, model in enumerate(MODELS):
        for stage in STAGES:
            runs = [child(model, stage, str(times), str(folder / f"{number}-{times}")) for times in TIMES]
            growth[f"{stage}, {model}"] = {
                "pictures a second": [round(1 / run["seconds"], 1) for run in runs],
                "time of a picture, 16x over 1x": round(runs[-1]["seconds"] / runs[0]["seconds"], 2),
                "peak MiB": [round(run["peak"] / 2**20) for run in runs],
            }
            print(stage, model, growth[f"{stage}, {model}"], flush=True)
    write_result("training", "training.py", facts=facts(growth), growth=growth)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        model, stage, times, folder = sys.argv[2:]
        print(json.dumps(measure(model, stage, int(times), Path(folder))))
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
