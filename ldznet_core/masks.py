"""What can be done with soft masks once they exist: thresholds, presence, competition, crops.

Pure functions on masks in 0..1. This file knows no picture, model, host or disk.
"""

import torch
from torch import Tensor

from .errors import InputError


def threshold(mask: Tensor, tau: float = 0.5) -> Tensor:
    """Soft mask in 0..1, any shape -> bool, true above `tau` (not at it, as in the metrics)."""
    return mask > tau


def present(masks: Tensor, tau: float = 0.5) -> Tensor:
    """Masks [..., H, W] with those of what was not found, nowhere above `tau`, all zero. The others stay soft."""
    return masks * (masks.amax((-2, -1), keepdim=True) > tau)


def crop_box(mask: Tensor, tau: float = 0.5, pad: int = 0) -> tuple[int, int, int, int] | None:
    """The smallest box around `mask` `[H, W]` > tau, widened by `pad` pixels and kept inside the picture.

    Returns (left, top, right, bottom), right and bottom exclusive as in `PIL.Image.crop`, or None where
    nothing is above the threshold.
    """
    if mask.ndim != 2:
        raise InputError(f"a crop box needs one mask [H, W], got {list(mask.shape)}")
    inside = threshold(mask, tau)
    rows, columns = inside.any(1).nonzero().flatten().tolist(), inside.any(0).nonzero().flatten().tolist()
    if not rows:
        return None
    height, width = mask.shape
    return (
        max(columns[0] - pad, 0),
        max(rows[0] - pad, 0),
        min(columns[-1] + 1 + pad, width),
        min(rows[-1] + 1 + pad, height),
    )


# The background's score where phrases compete, calibrated on validation scenes (`benchmarks/labels.py`). Lower than
# the threshold of a phrase alone: of several that are there, the best is often right at a low score.
BACKGROUND = 0.4


def exclusive(masks: Tensor, tau: float = BACKGROUND) -> tuple[Tensor, Tensor]:
    """One phrase a pixel: masks [..., P, H, W] compete, and each keeps its soft values where it wins.

    Returns those masks, and labels [..., H, W] that are 0 for the background (no mask above `tau`, its score) and else
    the number of the phrase, from 1. Of equals the first wins.
    """
    best, winner = masks.max(-3)  # [..., H, W]
    won = winner.unsqueeze(-3) == torch.arange(masks.shape[-3], device=masks.device)[:, None, None]
    return masks * won, torch.where(best > tau, winner + 1, 0)
