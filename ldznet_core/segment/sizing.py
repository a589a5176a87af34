"""Sizes: the size that a picture is worked on at, and masks and pictures brought from one size to another."""

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..imaging.images import to_tensor

MAX_ASPECT = 8  # beyond it the short side of a working grid has no room for an object
ALIKE = 0.1  # by how much the sides' ratios of an image and its latent may differ, for odd sizes and croppings


def padded(z: Tensor, multiple: int) -> Tensor:
    """Latents or images [B, C, h, w] with sides of that multiple, for networks that halve their grid three times. What
    is added, at the right and below, repeats the edge."""
    return F.pad(z, (0, -z.shape[-1] % multiple, 0, -z.shape[-2] % multiple), mode="replicate")


def check_pair(image: Tensor, z: Tensor) -> None:
    """Raises InputError where images [B, H, W, 3] cannot be those of latents [B, 4, h, w]: another number of them or
    another shape. They may be larger or smaller."""
    (batch, height, width), (latents, rows, columns) = image.shape[:3], (len(z), *z.shape[-2:])
    if batch != latents:
        raise InputError(f"{batch} images do not go with {latents} latents: give as many of each, or one of the two")
    if abs(width * rows / (height * columns) - 1) > ALIKE:
        raise InputError(
            f"an image of {width}x{height} is not that of a latent of {columns * 8}x{rows * 8} pixels: "
            "give the image that was decoded from it, or only one of the two"
        )


def fit(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [B, P, h, w] in 0..1 at another size, smoothed where they shrink."""
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W, 3] to [B, *size, 3], smoothed where it shrinks."""
    if image.shape[1:3] == size:
        return image
    pixels = image.permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return pixels.permute(0, 2, 3, 1).clamp(0, 1)


def lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """As `resize`, by Pillow's Lanczos filter on 8 bits, as the authors do."""
    bytes_ = (image.cpu() * 255).round().byte().numpy()
    small = [to_tensor(Image.fromarray(one).resize(size[::-1], Image.Resampling.LANCZOS)) for one in bytes_]
    return torch.cat(small)


def working_size(height: int, width: int, *, area: int, multiple: int) -> tuple[int, int]:
    """Height and width to work at, in pixels: about `area` in all, the picture's aspect ratio nearly kept.

    Both are multiples of `multiple`, and of all such sizes they are the best bargain between a wrong aspect ratio,
    too few pixels and, the least of these evils, too many: 256 x 128 is worked on at that size rather than squeezed
    into 192 x 64. Neither is more than eight times the other: a picture of 8000 x 37 is squeezed rather than cut.
    Raises InputError for a side below 1.
    """
    if min(height, width) < 1:
        raise InputError(f"a picture of {width}x{height} pixels has nothing to work on")
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    target = area / multiple**2

    def cost(size: tuple[int, int]) -> float:
        rows, columns = size
        excess = math.log(rows * columns / target)
        return abs(math.log(columns / rows / aspect)) + (0.3 * excess if excess > 0 else -0.6 * excess)

    reach = range(1, math.ceil(math.sqrt(target * MAX_ASPECT)) + 2)
    rows, columns = min(((r, c) for r in reach for c in reach if max(r, c) <= MAX_ASPECT * min(r, c)), key=cost)
    return rows * multiple, columns * multiple
