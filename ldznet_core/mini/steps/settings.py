"""How long each step of a build takes, on how much, and where a build lives."""

import math
from dataclasses import dataclass
from pathlib import Path

from ...training.loop import Plan

CHECKPOINT, TRANSFORMER = "mini.safetensors", "mini-dit.safetensors"
MUON = 5  # its rate over AdamW's: 12 does as well, 1 learns less than AdamW alone


@dataclass(frozen=True)
class Settings:
    """How long each step takes and on how much. `size` is the side of the pictures that the autoencoder and the
    denoiser begin with; the step `grow` doubles it."""

    size: int
    concepts: int
    vae_minutes: float
    denoiser_minutes: float
    grow_minutes: float
    decoder_steps: int
    long_steps: int
    light_steps: int
    long_light_steps: int
    compare_steps: int  # of a grown decoder of the comparison
    adapt_steps: int  # of a grown decoder of the bundle
    drawing_scenes: int  # for the denoiser
    grow_scenes: int  # for the grown one
    scenes: int  # for everything else
    vae_batch: int
    batch: int
    decoder_batch: int
    learning_rate: float
    decoder_rate: float
    dit_minutes: float
    dit_scenes: int
    dit_batch: int


SETTINGS = {
    "cpu": Settings(
        128, 32, 22, 90, 105, 500, 2500, 3000, 6000, 300, 1500, 24_000, 24_000, 6_000, 4, 32, 12, 8e-4, 4e-4, 240,
        8_000, 24,
    ),
    "cuda": Settings(
        128, 100, 4, 15, 15, 2000, 6000, 20000, 40000, 2000, 6000, 60_000, 60_000, 30_000, 16, 256, 96, 1e-3, 5e-4,
        20, 60_000, 256,
    ),
}  # fmt: skip
"""By the kind of device. The first takes hours on two cores; the second was not measured."""


@dataclass(frozen=True)
class Build:
    """Where a build lives and how this run of it goes. `minutes` replaces a step's own length; `stop_after` ends
    this run early, to be resumed."""

    folder: Path
    settings: Settings
    device: str = "cpu"
    minutes: float | None = None
    stop_after: float = math.inf
    resume: bool = False
    seeds: int = 3

    @property
    def pack(self) -> Path:
        return self.folder / "world.zip"

    @property
    def small(self) -> Path:
        """The miniature of the step `denoiser`."""
        return self.folder / "denoiser" / CHECKPOINT

    @property
    def grown(self) -> Path:
        """The miniature of the step `grow`, which is bundled."""
        return self.folder / "grown" / CHECKPOINT

    def plan(self, rate: float, minutes: float, ema: float, muon: bool = True) -> Plan:
        return Plan(
            rate, MUON * rate if muon else None, minutes=self.minutes or minutes, stop_after=self.stop_after,
            resume=self.resume, ema=ema, device=self.device,
        )
