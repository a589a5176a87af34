"""The settings of a pass: the same ones each time (the default), several noises, or those of the authors' demo, with a
random timestep, template and posterior sample. Numbers and sentences only, no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError


@dataclass(frozen=True)
class PassSpec:
    """Settings of one pass: the noise's timestep and seed, a sentence pattern for each phrase, and the seed of the
    VAE's posterior sample (None: its mean)."""

    timestep: int
    seed: int
    templates: tuple[str, ...]
    posterior: int | None = None


def repeatable(phrases: int, template: str, timestep: int, seed: int, samples: int) -> list[PassSpec]:
    """The same timestep and template in all, seeds counted up."""
    return [PassSpec(timestep, seed + i, (template,) * phrases) for i in range(samples)]


def as_authors(
    phrases: int, templates: Sequence[str], timesteps: tuple[int, int], seed: int, samples: int
) -> list[PassSpec]:
    """As in the authors' demo: each pass draws its timestep from the half-open range that the decoder was trained
    at, a template for each phrase, its noise and a sample of the VAE's posterior. `seed` decides all of it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    return [
        PassSpec(
            timestep=draw(*timesteps),
            templates=tuple(templates[draw(0, len(templates))] for _ in range(phrases)),
            seed=draw(0, 2**31),
            posterior=draw(0, 2**31),
        )
        for _ in range(samples)
    ]


def authors_size(height: int, width: int, area: int) -> tuple[int, int]:
    """Height and width as the authors choose them: at most `area` in all, each side floored to a multiple of 64, which
    changes the aspect ratio (4:3 becomes 384 x 320). Raises InputError where a side would be 0."""
    columns = int(math.sqrt(area / (height / width)))
    rows = int(height / width * columns)
    size = rows // 64 * 64, columns // 64 * 64
    if 0 in size:
        raise InputError(f"a picture of {width}x{height} is too narrow for the authors' sizes: leave --authors out")
    return size
