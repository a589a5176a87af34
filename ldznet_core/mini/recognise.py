"""A number for drawings that needs no eye: a small classifier, trained on composed single things only.

How often it names what the miniature was asked to draw, beside how often it names sprites of its training and real,
unseen ones.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..imaging.images import to_network
from ..training.hardware import keep_heap
from .bank import Recipe, bank

log = logging.getLogger(__name__)
SIDE = 64  # pixels that the classifier sees a side
BATCH = 64
TURN, ZOOM, SHIFT = 0.35, 0.3, 0.2  # radians, natural logarithm, half sides: the most that a view differs by


@dataclass(frozen=True)
class Recognition:
    """Shares named right first and within five guesses, of `count` pictures."""

    top1: float
    top5: float
    count: int


def classifier(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 192)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, classes))


def small(images: np.ndarray) -> Tensor:
    """uint8 [N, S, S, 3] -> float [N, 3, SIDE, SIDE] in -1..1."""
    parts = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
    return torch.cat([F.interpolate(to_network(part), (SIDE, SIDE), mode="area") for part in parts])


def single_things(pack: Path, nouns: list[str], splits: tuple[str, ...], count: int, size: int, seed: int):
    """Pictures of one thing each, and which of `nouns` it is."""
    recipe = Recipe(size, len(nouns), splits=splits, background_splits=splits, counts=(1, 0, 0))
    scenes = bank(pack, recipe, count, seed)
    labels = torch.tensor([nouns.index(s.things[0].sprite.noun) for s in scenes])
    return np.stack([s.image for s in scenes]), labels


def train_classifier(pack: Path, nouns: list[str], size: int, scenes: int, epochs: int, seed: int = 0) -> nn.Module:
    """Trained on sprites of the train split. It sees each in many views, since there are few, and with blur and noise,
    so that it judges shape and not sharpness."""
    torch.manual_seed(seed)
    keep_heap()
    images, labels = single_things(pack, nouns, ("train",), scenes, size, seed=31)
    pictures = small(images)
    network = classifier(len(nouns))
    steps = epochs * len(pictures) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        picked = torch.randint(len(pictures), (BATCH,))
        x = views(pictures[picked])
        if step % 2:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = x + 0.1 * torch.rand(()) * torch.randn_like(x)
        loss = F.cross_entropy(network(x), labels[picked], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    log.info("classifier: last training loss %.3f after %d steps", float(loss.detach()), steps)
    return network.eval()


def views(x: Tensor) -> Tensor:
    """Pictures [B, 3, H, W], each mirrored or not and turned, zoomed and shifted a little."""
    count = len(x)
    turn, zoom = TURN * uniform(count), (ZOOM * uniform(count)).exp()
    mirror = 1 - 2 * torch.randint(2, (count,))
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * zoom * turn.cos(), -zoom * turn.sin()
    theta[:, 1, 0], theta[:, 1, 1] = mirror * zoom * turn.sin(), zoom * turn.cos()
    theta[:, :, 2] = SHIFT * uniform(count, 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def uniform(*shape: int) -> Tensor:
    """Numbers in -1..1."""
    return 2 * torch.rand(shape) - 1


@torch.no_grad()
def recognise(network: nn.Module, images: np.ndarray, labels: Tensor) -> Recognition:
    pictures = small(images).split(BATCH)
    scores = torch.cat([network(x) for x in pictures])
    guesses = scores.topk(min(5, scores.shape[1])).indices  # [N, 5]
    right = guesses == labels[:, None]
    return Recognition(float(right[:, 0].float().mean()), float(right.any(1).float().mean()), len(labels))
