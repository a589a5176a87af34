"""Examples at another size: resized, or cropped as the paper crops them."""

from dataclasses import replace

import numpy as np
from PIL import Image

from ..errors import InputError
from .base import Example

TRIES = 50
ENOUGH = 0.05  # share of a crop that the mask should take


def resized(example: Example, height: int, width: int) -> Example:
    """The example at `height` x `width` pixels: its picture by bilinear interpolation with antialiasing, mask and
    ignored pixels by the nearest one. A latent of another size is dropped. A thing that is too small for that keeps one
    pixel, so that its phrase does not seem absent.

    Raises InputError where there is no picture to resize.
    """
    if example.mask.shape == (height, width):
        return example
    mask = _nearest(example.mask, height, width)
    if example.mask.any() and not mask.any():
        pixels = np.argwhere(example.mask)  # [N, 2]
        y, x = pixels[len(pixels) // 2] * (height, width) // example.mask.shape
        mask[y, x] = True
    return replace(
        example,
        image=np.array(_resized(_picture(example), height, width, Image.Resampling.BILINEAR)),
        mask=mask,
        ignore=None if example.ignore is None else _nearest(example.ignore, height, width),
        latent=None,
    )


def cropped(example: Example, rng: np.random.Generator) -> Example:
    """A random square of the picture, as large as its shorter side, that shows the object.

    The first of up to 50 random squares of which the mask takes more than 5 %, else the one of which it takes most.
    Where the phrase is absent, any square. Source: the training data of LD-ZNet and CLIPSeg. Raises InputError where
    there is no picture to crop.
    """
    image = _picture(example)
    height, width = example.mask.shape
    side = min(height, width)
    # The square can move along the longer side only, so these sums tell the mask's share of any square.
    columns = example.mask.sum(0 if width > height else 1)  # [longer side]
    before = np.concatenate([[0], np.cumsum(columns)])
    starts = rng.integers(max(height, width) - side + 1, size=TRIES)
    shares = (before[starts + side] - before[starts]) / side**2  # [TRIES]
    start = int(starts[np.argmax(shares > ENOUGH) if (shares > ENOUGH).any() else np.argmax(shares)])
    square = np.s_[:, start : start + side] if width > height else np.s_[start : start + side]
    return replace(
        example,
        image=image[square],
        mask=example.mask[square],
        ignore=None if example.ignore is None else example.ignore[square],
        latent=None,
    )


def _picture(example: Example) -> np.ndarray:
    if example.image is None:
        raise InputError(f"the example {example.phrase!r} has a latent only, whose size is fixed; give pictures")
    return example.image


def _resized(values: np.ndarray, height: int, width: int, how: Image.Resampling) -> Image.Image:
    return Image.fromarray(values).resize((width, height), how)


def _nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.array(_resized(mask.astype(np.uint8), height, width, Image.Resampling.NEAREST)).astype(bool)
