"""Regions by words while a picture is sampled: how far a prompt of its own rules at each position of the latent.

Where the words are is read from the sampler's own steps by a `Reader` (`segment/regions.py` has them). What becomes of
those masks is here, for our own sampler and for ComfyUI's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INSIDE = 0.5  # a mask above this is where the words are
MOST = 1 - 1e-4  # of the share of a region's prompt: its weight is finite
FEATHER = 16.0
START = 0.2  # on the miniature, as early as a mask by attention is good enough to hold a region


@dataclass(frozen=True)
class Region:
    """How a prompt rules where its words are being drawn.

    `strength` is the share of the prompt inside, 0..1; the other prompts have the rest. `feather` is the width in
    pixels over which the edge fades. The region holds from the share `start` of the run on, 0..1. `follow` reads it
    anew at every step; without it the region stays as it was when the words were first found. `invert` is everywhere
    else.
    """

    strength: float = 1.0
    feather: float = FEATHER
    start: float = START
    invert: bool = False
    follow: bool = False


@dataclass(frozen=True)
class Step:
    """What one step of a sampler shows: the estimate of the clean latent [B, C, h, w], and the outputs of readers'
    modules at that timestep, by name, for the rows of one prompt. `context` [1, N, D] is that prompt, encoded."""

    clean: Tensor
    timestep: int
    outputs: dict[str, Tensor]
    context: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.clean.shape[-2:])


class Reader(Protocol):
    """Finds words in the steps of a sampler."""

    def modules(self, size: tuple[int, int], find: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
        """The parts of the denoiser whose outputs it reads, by name, for latents of height and width `size`. `find`
        gives the spatial transformer of a block."""

    def masks(self, step: Step) -> Tensor | None:
        """Soft masks [B, H, W] in 0..1 of the words; None where the step left out one of the modules."""


class Tracker:
    """Where one region is in one run of a sampler."""

    def __init__(self, region: Region, reader: Reader):
        self.region, self.reader = region, reader
        self.words: Tensor | None = None  # [B, h, w], 1 where the words are; None before a step was read
        self.found: Tensor | None = None  # [B], whether the words were found in any step

    @property
    def is_settled(self) -> bool:
        """Whether no further step needs to be read."""
        held = not self.region.follow and self.found is not None and bool(self.found.all())
        return held or not self.region.strength

    def read(self, step: Step) -> None:
        """Look for the words in a step. Images in which they are not found keep what they had."""
        masks = None if self.is_settled else self.reader.masks(step)
        if masks is None:
            return
        inside = masks > INSIDE
        found = inside.flatten(1).any(1)  # [B]
        words = faded(inside.to(step.clean), step.size, self.region.feather)
        if self.words is None or self.words.shape != words.shape:
            self.words, self.found = torch.zeros_like(words), torch.zeros_like(found)
        taken = found if self.region.follow else found & ~self.found
        self.words = torch.where(taken[:, None, None], words, self.words)
        self.found = self.found | found

    def share(self) -> Tensor | None:
        """The share [B, h, w] of the region's prompt, 0..1; None where it has none anywhere."""
        if self.words is None or not self.region.strength:
            return None
        share = self.region.strength * (1 - self.words if self.region.invert else self.words)
        return share if share.any() else None


def faded(inside: Tensor, size: tuple[int, int], feather: float) -> Tensor:
    """Masks [B, H, W] of 0 and 1 on the grid [B, h, w] of a latent, their edges `feather` pixels wide."""
    masks = F.adaptive_avg_pool2d(inside[:, None], size)
    radius = min(round(feather / 16), *(side - 1 for side in size))
    if radius > 0:
        masks = F.avg_pool2d(masks, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    return masks[:, 0]


def weight(share: Tensor) -> Tensor:
    """The weight that gives a prompt this share, 0..1, where the weights of the other prompts sum to 1."""
    share = share.clamp(0, MOST)
    return share / (1 - share)


def blend(base: Tensor, others: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Predictions of several prompts as one: `base` [B, C, h, w] has weight 1, each of `others` its share [B, h, w]
    as `weight` says."""
    total, norm = base, 1.0
    for prediction, share in others:
        w = weight(share)[:, None].to(base)
        total, norm = total + w * prediction, norm + w
    return total / norm
