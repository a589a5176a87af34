"""The build of the bundled miniature: steps that each read the folder of the one before and can be resumed.

`pack` fetches the art and needs the network once; the others need torch, numpy, Pillow and safetensors only.
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..hosts.ldm import LDMHost, load_host
from ..networks.decoder import KINDS
from ..weights import BUNDLED
from .bank import Recipe, bank
from .decoders import train_decoder, training_data
from .denoiser import train_denoiser, trained_vae
from .drawing import draw
from .loop import Plan
from .sheets import sheet
from .vae import to_network, train_vae
from .world import COLOUR_RGB, article

log = logging.getLogger(__name__)
STEPS = ("pack", "vae", "denoiser", "decoders", "bundle")
LIMIT = 64_000_000  # bytes of all bundled weights together


@dataclass(frozen=True)
class Settings:
    """What is built for a picture size: 128 trains on two CPU cores in two hours, 256 wants a GPU."""

    size: int
    concepts: int
    vae_minutes: float
    denoiser_minutes: float
    decoder_steps: int
    scenes: int
    vae_batch: int
    batch: int
    decoder_batch: int
    learning_rate: float
    decoder_rate: float


SETTINGS = {
    128: Settings(128, 32, 22, 45, 600, 14_000, 4, 24, 24, 8e-4, 5e-4),
    256: Settings(256, 100, 4, 15, 3000, 60_000, 16, 256, 128, 1e-3, 5e-4),
}


@dataclass(frozen=True)
class Build:
    """Where a build lives and how this run of it goes. `minutes` replaces a step's own length; `stop_after` ends
    this run early, to be resumed."""

    folder: Path
    settings: Settings
    device: str = "cpu"
    minutes: float | None = None
    stop_after: float = float("inf")
    resume: bool = False
    seeds: int = 3

    @property
    def pack(self) -> Path:
        return self.folder / "world.zip"

    def plan(self, rate: float, minutes: float, ema: float) -> Plan:
        return Plan(
            rate, minutes=self.minutes or minutes, stop_after=self.stop_after, resume=self.resume, ema=ema,
            device=self.device,
        )


def pack(build: Build) -> None:
    from .pack import build_pack

    build.folder.mkdir(parents=True, exist_ok=True)
    if build.resume and build.pack.is_file():
        log.info("%s is there already", build.pack)
        return
    build_pack(build.pack, build.folder / "art")


def vae(build: Build) -> None:
    s, folder = build.settings, build.folder / "vae"
    recipe = Recipe(s.size, s.concepts)
    train_vae(build.pack, folder, build.plan(1.5e-3, s.vae_minutes, 0.995), recipe, 5000, s.vae_batch)
    images = np.stack([scene.image for scene in bank(build.pack, recipe, 16, seed=5)])
    network = trained_vae(folder, "cpu")
    with torch.inference_mode():
        again = network.decode(network.encode(to_network(images))).clamp(-1, 1)
    again = ((again.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    pairs = [picture for pair in zip(images, again, strict=True) for picture in pair]
    sheet(pairs, ["picture", "through the autoencoder"] * len(images), build.folder / "vae.png")


def denoiser(build: Build) -> None:
    s, folder = build.settings, build.folder / "denoiser"
    recipe = Recipe(s.size, s.concepts, counts=(0.45, 0.4, 0.15))
    plan = build.plan(s.learning_rate, s.denoiser_minutes, 0.998)
    train_denoiser(build.pack, build.folder / "vae", folder, plan, recipe, s.scenes, s.batch)
    sample_sheet(load_host(folder / "mini.safetensors"), build.folder / "samples.png")


def sample_captions(host: LDMHost) -> list[str]:
    """One caption for each of the first 32 nouns, grounds in turn: fixed, so that nothing is picked."""
    grounds = list(COLOUR_RGB)
    return [
        f"{article(noun)} on {article(grounds[i % len(grounds)])} background"
        for i, noun in enumerate(host.model.about["nouns"][:32])
    ]


def sample_sheet(host: LDMHost, path: Path) -> None:
    captions = sample_captions(host)
    sheet(list(draw(host, captions, host.model.about["size"], seed=0)), captions, path)


def decoders(build: Build) -> None:
    s = build.settings
    host = load_host(build.folder / "denoiser" / "mini.safetensors")
    data = training_data(build.pack, host.model, s.scenes // 2)
    for seed in range(build.seeds):
        for kind in KINDS:
            path = build.folder / "decoders" / f"{kind}-{seed}.safetensors"
            if build.resume and path.is_file():
                continue
            plan = build.plan(s.decoder_rate, float("inf"), 0.995)
            if build.minutes is None:
                plan = replace(plan, steps=s.decoder_steps)
            train_decoder(kind, seed, host.model, data, path.parent, plan, s.decoder_batch)


def bundle(build: Build) -> None:
    """Copy the checkpoint, its tokenizer and the first ZNet and LD-ZNet to where `mini` is loaded from."""
    sources = {
        "mini.safetensors": build.folder / "denoiser" / "mini.safetensors",
        "znet.safetensors": build.folder / "decoders" / "znet-0.safetensors",
        "ldznet.safetensors": build.folder / "decoders" / "ldznet-0.safetensors",
    }
    missing = [str(p) for p in sources.values() if not p.is_file()]
    if missing:
        raise InputError(f"nothing to bundle yet: {missing[0]} is missing, run the steps before")
    total = sum(p.stat().st_size for p in sources.values())
    if total > LIMIT:
        raise InputError(f"the weights take {total / 1e6:.1f} MB together, more than {LIMIT / 1e6:.0f} MB")
    BUNDLED.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        shutil.copyfile(source, BUNDLED / name)
    shutil.copytree(build.folder / "denoiser" / "tokenizer", BUNDLED / "tokenizer", dirs_exist_ok=True)
    log.info("bundled %.1f MB", total / 1e6)
