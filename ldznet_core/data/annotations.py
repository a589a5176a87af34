"""Masks as annotation files hold them: polygons and COCO's run-length codes.

`packed` checks them and makes them small enough to keep for a million objects; `mask_of` draws them, and `outlined`
makes an example of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .base import Example
from .records import read_picture

Packed = np.ndarray
"""Polygons as float32 [N, 2] of x, y (the first pixel reaches from 0 to 1) with a row of NaN between them, or a
run-length code as int32 [N]: the height of its picture, then the lengths of its runs."""


def packed(segmentation, first: float = 0.5) -> Packed:
    """COCO's `segmentation` of one object: a list of polygons or a run-length code {"size": ..., "counts": ...}.

    A polygon is [x, y, x, y, ...] or [[x, y], ...] in pixels; `first` is the coordinate of the first pixel's centre.
    Raises InputError where it is neither.
    """
    return _packed_code(segmentation) if isinstance(segmentation, dict) else _packed_polygons(segmentation, first)


def mask_of(objects: Sequence[Packed | None], height: int, width: int) -> np.ndarray:
    """The union of objects as bool [H, W]; what lies outside the picture is cut off.

    Raises InputError where an object lies outside wholly, a run-length code is of another size, or an object is None,
    which stands for one that could not be packed: a mask without it would be wrong.
    """
    mask = np.zeros((height, width), bool)
    for one in objects:
        if one is None:
            raise InputError("one of its annotations is damaged")
        if one.ndim == 1:
            mask |= _decoded(one, height, width)
            continue
        for corners in np.split(one, np.flatnonzero(np.isnan(one[:, 0]))):
            corners = corners[~np.isnan(corners[:, 0])].astype(np.float64)
            if (corners.max(0) < 0).any() or (corners.min(0) >= (width, height)).any():
                raise InputError(f"a polygon lies outside its picture of {width}x{height} pixels")
            _fill(mask, corners)
    return mask


def _fill(mask: np.ndarray, corners: np.ndarray) -> None:
    """Mark the pixels of bool [H, W] whose centres lie in a polygon [N, 2]; one pixel where it is too thin for that.

    So do COCO's tools and CLIPSeg, but for pixels on the outline. Pillow's polygons are half a pixel wider all around.
    """
    limits = mask.shape[::-1]  # width, height
    (left, top), (right, bottom) = (
        np.clip(edge, 0, limits).astype(int) for edge in (np.floor(corners.min(0)), np.ceil(corners.max(0)))
    )
    start = corners - (left, top)
    end = np.roll(start, -1, axis=0)
    # The columns whose centres each edge passes, and the row in which it passes each of them.
    crossed = np.ceil(np.clip(np.stack([start[:, 0], end[:, 0]]) - 0.5, 0, right - left)).astype(int)  # [2, N]
    count = np.abs(crossed[1] - crossed[0])
    edge = np.repeat(np.arange(len(start)), count)  # [M]
    column = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + crossed.min(0)[edge]
    slope = (end - start)[edge]
    y = start[edge, 1] + (column + 0.5 - start[edge, 0]) * slope[:, 1] / slope[:, 0]
    row = np.ceil(np.clip(y - 0.5, 0, bottom - top)).astype(int)
    # Down a column, each edge that is passed leads into the polygon or out of it.
    shape = (bottom - top + 1, right - left)
    passed = np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)
    inside = np.cumsum(passed, axis=0)[:-1] % 2 == 1
    mask[top:bottom, left:right] |= inside
    if not inside.any():
        x, y = np.clip(corners.mean(0), 0, np.subtract(limits, 1)).astype(int)
        mask[y, x] = True


def outlined(phrase: str, path: Path, size: tuple[int, int] | None, objects: Sequence[Packed | None]) -> Example:
    """The example of a phrase that names these objects in the picture at `path`, which is of `size` (height, width).

    Raises InputError, which names the picture, where it or an object is damaged.
    """
    picture = read_picture(path, size)
    try:
        mask = mask_of(objects, *picture.shape[:2])
    except InputError as error:
        raise InputError(f"{path}, {phrase!r}: {error}") from None
    return Example(phrase, mask, picture, picture=str(path))


def _packed_polygons(polygons, first: float) -> Packed:
    rows = []
    try:
        for polygon in polygons:
            with np.errstate(over="ignore"):  # becomes infinite, which is refused below
                corners = np.asarray(polygon, np.float32).reshape(-1, 2)
            if len(corners) < 3 or not np.isfinite(corners).all():
                raise InputError("a polygon has fewer than three corners, or some that are not finite")
            rows += [np.full((1, 2), np.nan, np.float32), corners + np.float32(0.5 - first)]
    except InputError:
        raise
    except (TypeError, ValueError):
        raise InputError("a polygon is not a list of x, y pairs") from None
    if not rows:
        raise InputError("an object has no polygon")
    return np.concatenate(rows[1:])


def _packed_code(code: dict) -> Packed:
    try:
        height, width = map(int, code["size"])
        counts = code["counts"]
        counts = _uncompressed(counts) if isinstance(counts, str | bytes) else list(map(int, counts))
    except (KeyError, TypeError, ValueError):
        raise InputError('a run-length code is not {"size": [height, width], "counts": ...} or is cut short') from None
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise InputError(f"a run-length code covers {sum(counts)} pixels instead of {width}x{height}")
    return np.array([height, *counts], np.int32)


def _decoded(code: Packed, height: int, width: int) -> np.ndarray:
    """bool [H, W]. Runs go down the columns, and the first is background."""
    runs = code[1:]
    if code[0] != height or runs.sum() != height * width:
        raise InputError(f"a run-length code is of another size than its picture of {width}x{height} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _uncompressed(code: str | bytes) -> list[int]:
    """Run lengths from a compressed string: digits of five bits, the lowest first, as characters from "0" on, whose
    sixth bit says that more follow. From the fourth length on, a number is the difference to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in code.encode("ascii") if isinstance(code, str) else code:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError("no digit of a run-length code")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("cut short")
    return counts
