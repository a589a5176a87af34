"""What can be done with soft masks once they exist: thresholds, presence, competition, crops.

Pure functions on masks in 0..1. This file knows no picture, model or disk.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def threshold(mask: Tensor, tau: float = 0.5) -> Tensor:
    """Soft mask in 0..1, any shape -> bool, true above `tau` (not at it, as in the metrics)."""
    return mask > tau


def present(masks: Tensor, tau: float = 0.5) -> Tensor:
    """Masks [..., H, W] with those of what was not found, nowhere above `tau`, all zero. The others stay soft."""
    return masks * (masks.amax((-2, -1), keepdim=True) > tau)


# The background's score where phrases compete, calibrated on validation scenes (`benchmarks/labels.py`). Lower than
# the threshold of a phrase alone: of several that are there, the best is often right at a low score.
BACKGROUND = 0.4


def exclusive(masks: Tensor, tau: float = BACKGROUND) -> tuple[Tensor, Tensor]:
    """One phrase a pixel: masks [..., P, H, W] compete, and each keeps its soft values where it wins.

    Returns those masks, and labels [..., H, W] that are 0 for the background (no mask above `tau`, its score) and else
    the number of the phrase, from 1. Of equals the first wins.
    """
    best, winner = masks.max(-3)  # [..., H, W]
    wins = winner.unsqueeze(-3) == torch.arange(masks.shape[-3], device=masks.device)[:, None, None]
    return masks * wins, torch.where(best > tau, winner + 1, 0)


def grow(masks: Tensor, pixels: int) -> Tensor:
    """Masks [..., H, W] in 0..1 grown by that many pixels to every side, in a round shape; shrunk where negative. The
    picture's border does not shrink what touches it."""
    grown = (masks if pixels >= 0 else 1 - masks).reshape(-1, 1, *masks.shape[-2:])  # [N, 1, H, W]
    for step in range(abs(pixels)):
        square = F.max_pool2d(grown, 3, stride=1, padding=1)
        cross = torch.maximum(
            F.max_pool2d(grown, (3, 1), stride=1, padding=(1, 0)), F.max_pool2d(grown, (1, 3), stride=1, padding=(0, 1))
        )
        grown = cross if step % 2 else square  # in turns they make an octagon
    grown = grown.reshape(masks.shape)
    return grown if pixels >= 0 else 1 - grown


def feather(masks: Tensor, pixels: int) -> Tensor:
    """Masks [..., H, W] in 0..1 blurred by a Gaussian of about that many pixels to each side of an edge; 0 leaves them
    as they are."""
    if pixels <= 0:
        return masks
    offsets = torch.arange(-pixels, pixels + 1, dtype=torch.float32)
    kernel = (-0.5 * (offsets / (pixels / 2)) ** 2).exp()
    kernel = (kernel / kernel.sum()).to(masks)
    blurred = masks.reshape(-1, 1, *masks.shape[-2:])  # [N, 1, H, W]
    blurred = F.conv2d(F.pad(blurred, (0, 0, pixels, pixels), mode="replicate"), kernel[None, None, :, None])
    blurred = F.conv2d(F.pad(blurred, (pixels, pixels, 0, 0), mode="replicate"), kernel[None, None, None])
    return blurred.reshape(masks.shape).clamp(0, 1)
