"""What masks by attention cost: `python benchmarks/attention.py [rounds]`.

Time of eight phrases over that of one, on the miniature and on a UNet and a text encoder of SD 1.5's sizes at 512
pixels, and the memory that attention takes there beside a plain pass of that UNet. Runs are interleaved, because a
machine's speed drifts, and medians are compared. Peaks are those of fresh processes. Weights and tokens of that size
are random: time and memory do not depend on them.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from types import SimpleNamespace

import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.families.unet import plan
from ldznet_core.backbones.queries import Queries
from ldznet_core.backbones.recording import Text
from ldznet_core.backbones.torch_ldm import LDMBackbone
from ldznet_core.checkpoints.ldm import LatentDiffusion
from ldznet_core.checkpoints.tokenizer import LENGTH
from ldznet_core.networks.schedule import Schedule
from ldznet_core.networks.text import ClipText, TextConfig
from ldznet_core.networks.unet import UNet, UNetConfig
from ldznet_core.segment.attention import NOISE_GRID, NOISES, AttentionSegmenter, read_queries
from ldznet_core.segment.attention_maps import evidence, masks_of, phrase_attention

MB = 1e6
PHRASES = ("cat", "dog", "frog", "panda", "fish", "apple", "bus", "star")
T = AttentionSegmenter.timestep
MINI_ROUNDS = 30


class RandomHost(LDMBackbone):
    """A backbone of SD 1.5's sizes with random weights, for which every phrase is one random token."""

    def __init__(self):
        torch.manual_seed(0)
        text, unet = ClipText(TextConfig()), UNet(UNetConfig())
        for network in (text, unet):
            network.eval().requires_grad_(False)
        super().__init__(LatentDiffusion(torch.nn.Identity(), text, unet, None, Schedule.stable_diffusion(), {}))

    @torch.inference_mode()
    def embed(self, texts) -> Text:
        tokens = torch.randint(TextConfig().vocabulary, (len(texts), LENGTH))
        return Text(self.model.text(tokens), lengths=(1,) * len(texts))


def interleaved(first: Callable, second: Callable, rounds: int) -> tuple[float, float]:
    """Median seconds of each, run in turns after one run of each that does not count."""
    times: dict[Callable, list[float]] = {first: [], second: []}
    for turn in range(-1, rounds):
        for work in (first, second) if turn % 2 else (second, first):
            start = perf_counter()
            work()
            if turn >= 0:
                times[work].append(perf_counter() - start)
    return median(times[first]), median(times[second])


def phrases_cost(name: str, backbone, side: int, rounds: int) -> None:
    predict, z = AttentionSegmenter(backbone).predict_latent, torch.randn(1, 4, side, side)
    one, all_ = interleaved(lambda: predict(z, PHRASES[:1]), lambda: predict(z, PHRASES), rounds)
    print(f"{name}: one phrase {one:.3f} s, {len(PHRASES)} phrases {all_:.3f} s, ratio {all_ / one:.2f} "
          f"(medians of {rounds})", flush=True)


def kept(queries: Queries) -> int:
    """Bytes of queries in 16 bits."""
    return 2 * sum(q.numel() for q in (*queries.cross, *(queries.own or ())))


def predict(backbone, z: torch.Tensor, spread: str) -> None:
    AttentionSegmenter(backbone, spread=spread).predict_latent(z, PHRASES)


WORK = {
    "plain pass of the UNet": lambda backbone, z: backbone.denoise(z, backbone.embed([""]), timestep=T),
    "attention, not spread": lambda backbone, z: predict(backbone, z, "none"),
    "attention, spread as objects": lambda backbone, z: predict(backbone, z, "objects"),
}


def arithmetic() -> int:
    """Bytes that reading random queries of SD 1.5's sizes takes beside them, spread as objects. No model is there."""
    config = UNetConfig()
    chosen, phrases = plan(config, 64, 64), len(PHRASES)

    def queries(count: int, side: int) -> Queries:
        def tensor(layer) -> torch.Tensor:
            channels = config.model_channels * config.channel_mult[layer.level]
            return torch.randn(count, (side >> layer.level) ** 2, channels)

        own = (tensor(chosen.own), tensor(chosen.own))
        return Queries(chosen, (side, side), tuple(map(tensor, chosen.layers)), own)

    keys = [(torch.randn(phrases, 3, config.model_channels * config.channel_mult[layer.level]),
             torch.ones(phrases, 3, dtype=torch.bool)) for layer in chosen.layers]
    one, noise = queries(1, 64), queries(NOISES, NOISE_GRID)
    finder = AttentionSegmenter(SimpleNamespace(unet_config=config), spread="objects")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = most_resident()
    found = evidence(phrase_attention(one, keys, config), phrase_attention(noise, keys, config), one)
    finder.spread_out(masks_of(found)[0], one)
    return most_resident() - before


def most_resident() -> int:
    """Bytes of this process's peak. Linux only; `getrusage` would tell the parent's peak where that was higher."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def fresh(*arguments: str) -> int:
    """What a fresh process of this file prints, with the allocator as the system has it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, __file__, *arguments]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main(rounds: int) -> None:
    phrases_cost("miniature, 256 px", load_backbone("mini"), 32, MINI_ROUNDS)
    backbone = RandomHost()
    phrases_cost("SD 1.5's sizes, 512 px", backbone, 64, rounds)
    z, empty, layers = torch.randn(1, 4, 64, 64), backbone.embed([""]), plan(backbone.unet_config, 64, 64)
    one = read_queries(backbone, z, empty, layers, T, 0)
    print(f"queries kept of one image at 512 px, in 16 bits: {kept(one) / MB:.1f} MB")
    del backbone, one
    peaks = {name: fresh("--peak", name) for name in WORK}
    plain = peaks["plain pass of the UNet"]
    for name, most in peaks.items():
        beyond = f", {(most - plain) / MB:+.0f} MB ({(most - plain) / 2 / MB:+.0f} MB in 16 bits)"
        print(f"{name}: {most / MB:.0f} MB resident at most{beyond if most != plain else ''}")
    alone = fresh("--arithmetic")
    print(f"the arithmetic alone: {alone / MB:.0f} MB ({alone / 2 / MB:.0f} MB in 16 bits)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        WORK[sys.argv[2]](RandomHost(), torch.randn(1, 4, 64, 64))
        print(most_resident())
    elif sys.argv[1:2] == ["--arithmetic"]:
        print(arithmetic())
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
