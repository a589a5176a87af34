"""Masks as SEGS, the list of labelled regions that ComfyUI Impact Pack's detailers, filters and previews take.

The layout is Impact Pack's (`impact.core.SEG`); nothing of it is imported. SEGS are always those of one image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .postprocess import threshold

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom are not inside


class Segment(NamedTuple):
    """One region. Boxes are in pixels of the image that SEGS name the size of."""

    cropped_image: np.ndarray | None  # float32 [1, h, w, 3] in 0..1
    cropped_mask: np.ndarray  # float32 [h, w] in 0..1
    confidence: float  # 0..1
    crop_region: list[int]
    bbox: Box
    label: str
    control_net_wrapper: object | None = None


def segs_of(
    masks: Tensor, phrases: Sequence[str], image: Tensor | None = None, tau: float = 0.5, crop_factor: float = 3.0
) -> tuple[tuple[int, int], list[Segment]]:
    """SEGS ((H, W), segments) of one image's soft masks [P, H, W], and of that image [H, W, 3] where it is at hand.

    A phrase whose mask is nowhere above `tau` gives no segment. The bounding box holds what is above `tau`, and the
    confidence is the mean of the mask there. The mask itself stays soft. The crop is `crop_factor` times the box on
    each side, moved and cut to lie in the image.
    """
    segments = []
    for mask, phrase in zip(masks, phrases, strict=True):
        inside = threshold(mask, tau)
        if not inside.any():
            continue
        box = bounding_box(inside)
        left, top, right, bottom = region = crop_around(box, crop_factor, *mask.shape)
        crop = None if image is None else image[None, top:bottom, left:right].float().cpu().numpy().copy()
        soft = mask[top:bottom, left:right].float().cpu().numpy().copy()
        segments.append(Segment(crop, soft, mask[inside].mean().item(), list(region), box, phrase))
    return tuple(masks.shape[-2:]), segments


def bounding_box(inside: Tensor) -> Box:
    """The box around the true pixels, at least one, of a bool [H, W]."""
    rows, columns = (inside.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def crop_around(box: Box, factor: float, height: int, width: int) -> Box:
    """The box with its sides `factor` times as long, in an image of that size."""
    left, top, right, bottom = box
    left, right = stretch(left, right, factor, width)
    top, bottom = stretch(top, bottom, factor, height)
    return left, top, right, bottom


def stretch(low: int, high: int, factor: float, limit: int) -> tuple[int, int]:
    """`low` to `high` stretched about its middle, moved into 0..`limit`, and no longer than that."""
    length = min(limit, max(1, round((high - low) * factor)))
    start = round((low + high - length) / 2)
    start = max(0, min(start, limit - length))
    return start, start + length
