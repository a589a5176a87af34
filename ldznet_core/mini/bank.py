"""A bank of composed scenes in memory, made by all cores, for training and evaluation.

Composing is cheap but not free: a bank is composed once and used for several epochs.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from .sprites import load_pack, nouns
from .styles import Looks
from .world import Scene, compose


@dataclass(frozen=True)
class Recipe:
    """What the scenes of a bank show. `counts` are the shares of scenes with one, two and three things."""

    size: int = 128
    concepts: int = 32
    styles: tuple[str, ...] | None = None
    splits: tuple[str, ...] = ("train",)
    background_splits: tuple[str, ...] = ("train",)
    counts: tuple[float, float, float] = (0.3, 0.45, 0.25)
    looks: Looks | None = None
    portraits: bool = False


@lru_cache(maxsize=1)
def opened(path: Path):
    return load_pack(path)


def compose_scenes(path: Path, recipe: Recipe, seed: int, count: int) -> list[Scene]:
    pack = opened(path)
    sprites = pack.select(nouns=nouns(pack, recipe.concepts), styles=recipe.styles, splits=recipe.splits)
    backgrounds = [b for b in pack.backgrounds if b.split in recipe.background_splits]
    rng = np.random.default_rng(seed)
    how = {"size": recipe.size, "counts": recipe.counts, "looks": recipe.looks, "portraits": recipe.portraits}
    return [compose(rng, sprites, backgrounds, **how) for _ in range(count)]


def bank(path: Path, recipe: Recipe, count: int, seed: int, workers: int | None = None) -> list[Scene]:
    """`count` scenes; the same for the same seed, whatever the number of workers."""
    chunk = 250
    jobs = [(path, recipe, seed * 1_000_003 + i, min(chunk, count - i)) for i in range(0, count, chunk)]
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers == 1:
        parts = [compose_scenes(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(compose_scenes, *zip(*jobs, strict=True)))
    return [scene for part in parts for scene in part]
