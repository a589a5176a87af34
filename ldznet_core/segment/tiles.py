"""Large pictures in overlapping windows, for things that are too small to be found at the size the model works at."""

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..imaging.images import to_tensor
from .base import GRID, PRESENT, BaseSegmenter, MaskPrediction

OVERLAP = 0.25  # of neighbouring windows, at least, as a share of their side


def starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side of that length: as few as overlap enough, at even distances."""
    if length <= window:
        return [0]
    gaps = math.ceil((length - window) / (window * (1 - OVERLAP)))
    return [round(i * (length - window) / gaps) for i in range(gaps + 1)]


def weight(height: int, width: int) -> Tensor:
    """How much a window [height, width] counts at each pixel: most in its middle, next to nothing at its edges, where
    things are cut off."""
    rows, columns = (torch.sin(math.pi * (torch.arange(n) + 0.5) / n).square() for n in (height, width))
    return rows[:, None] * columns


def blend(windows: Iterable[tuple[int, int, Tensor]], size: tuple[int, int]) -> Tensor:
    """The masks [B, P, H, W] of a picture of that size, from windows of masks [B, P, h, w], each with its top and its
    left. The windows must cover the picture. Where they overlap, masks go over into each other without a seam."""
    total, weights = 0.0, torch.zeros(size)
    for top, left, masks in windows:
        height, width = masks.shape[-2:]
        if isinstance(total, float):
            total = masks.new_zeros(*masks.shape[:2], *size)
        place = (..., slice(top, top + height), slice(left, left + width))
        total[place] += masks * (part := weight(height, width).to(masks))
        weights[place] += part
    return total / weights


def predict_tiled(segmenter: BaseSegmenter, image, phrases: Sequence[str], **how) -> MaskPrediction:
    """As `segmenter.predict`, of the whole picture and of overlapping windows of about the area that the segmenter
    works on, at the picture's own scale.

    The whole picture counts as much as its mask's peak, the windows the rest: large things are seen better in the
    whole, and in windows their parts look like something else. A phrase's presence is the highest of all. A picture no
    larger than a window is done whole only.
    """
    image = to_tensor(image)
    height, width = image.shape[1:3]
    side = max(round(math.sqrt(segmenter.area) / GRID), 1) * GRID
    corners = [(top, left) for top in starts(height, side) for left in starts(width, side)]
    if len(corners) == 1:
        return segmenter.predict(image, phrases, **how)
    passes, part = len(corners) + 1, copy.copy(segmenter)

    def look(number: int, top: int = 0, left: int = 0, side: int = max(height, width)) -> MaskPrediction:
        part.progress = lambda share: segmenter.progress((number + share) / passes)
        return part.predict(image[:, top : top + side, left : left + side], phrases, **how)

    whole = look(0)
    windows = [look(number, *corner, side) for number, corner in enumerate(corners, 1)]
    masks = blend(
        ((*corner, found.present(PRESENT)) for corner, found in zip(corners, windows, strict=True)), (height, width)
    )
    sure = whole.present(PRESENT).amax((-2, -1), keepdim=True)  # [B, P, 1, 1]
    presence = whole.presence
    if presence is not None:
        presence = torch.stack([presence, *(found.presence for found in windows)]).amax(0)
    return MaskPrediction(torch.lerp(masks, whole.masks, sure), presence, whole.reach)
