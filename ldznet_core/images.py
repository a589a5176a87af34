"""Pictures in and out: files to RGB pictures, pictures to tensors, results to PNG files with safe names.

Whatever people have on disk either becomes plain 8-bit RGB or is refused in one line. This file knows
nothing of models or masks.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import InputError
from .files import replacing

MAX_PIXELS = 178_000_000  # where Pillow, too, takes a picture for a decompression bomb
MAX_ASPECT = 8  # beyond it the short side of a working grid has no room for an object


def read_image(path: str | os.PathLike) -> Image.Image:
    """The picture in a file as 8-bit RGB, upright.

    EXIF orientation is applied, transparency is laid on white, CMYK, grey, 16-bit and float pictures are
    converted with their range kept, and of an animation the first frame is taken. Raises InputError, in
    one line that names the file, where there is no picture or it is broken or has more than 178 megapixels.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name the picture files in it")
    try:
        with Image.open(path) as image:
            _check_size(path, image.size)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: this is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(path)) from None
    except Exception as fault:  # decoders raise nearly anything on damaged files, SyntaxError among it
        if isinstance(fault, OSError) and fault.errno:
            raise InputError(f"{path}: this file cannot be read ({fault.strerror})") from fault
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise InputError(f"{path}: the picture is damaged or cut short ({reason}); save it again") from fault


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture of any mode as 8-bit RGB: transparency on white, deep greys with their range kept."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bit(image))
    if image.mode in ("La", "LA", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_tensor(image: Image.Image | np.ndarray | Tensor) -> Tensor:
    """A picture, or a batch of them, as float32 `[B, H, W, 3]` in 0..1.

    A Pillow picture of any mode gives B = 1 and is taken as it stands: its orientation tag is not applied,
    so that masks fit the picture handed in. Arrays and tensors must already be float `[B, H, W, 3]` in 0..1;
    a tensor stays on its device, and values slightly outside (resizing overshoots) are clamped. Raises
    InputError that names the shape for anything else.
    """
    if isinstance(image, Image.Image):
        try:
            pixels = np.array(to_rgb(image), dtype=np.float32)  # [H, W, 3]
        except Exception as fault:  # Pillow decodes only now, see read_image
            raise InputError(f"the picture cannot be decoded ({fault}); save it again") from fault
        batch = torch.from_numpy(pixels).div_(255)[None]
    elif isinstance(image, np.ndarray):
        if image.dtype.kind != "f":
            raise InputError(_unlike(image.dtype, image.shape))
        batch = torch.from_numpy(image.astype(np.float32))
    elif isinstance(image, Tensor):
        if not image.is_floating_point():
            raise InputError(_unlike(image.dtype, image.shape))
        batch = image.detach().float()
    else:
        raise InputError(
            f"expected a Pillow picture or float [B, H, W, 3] in 0..1, got {type(image).__name__}"
        )

    if batch.ndim != 4 or batch.shape[-1] != 3 or 0 in batch.shape:
        raise InputError(_unlike(image.dtype if hasattr(image, "dtype") else image.mode, batch.shape))
    low, high = (bound.item() for bound in batch.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"the picture {list(batch.shape)} has values that are not finite (NaN or infinity)")
    if low < -0.5 or high > 1.5:
        raise InputError(
            f"the picture {list(batch.shape)} has values from {low:g} to {high:g}; scale them to 0..1 first"
        )
    return batch.clamp(0, 1)


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


def write_png(path: str | os.PathLike, image: Image.Image) -> None:
    """Write a PNG whole or not at all; missing folders are made.

    Raises InputError that names the folder where it cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as unfinished:
            image.save(unfinished, format="PNG")
    except OSError as fault:
        reason = fault.strerror or str(fault)
        raise InputError(
            f"cannot write {path.name} into {path.parent} ({reason}); choose a folder that can be written to"
        ) from fault


def slug(text: str, limit: int = 40) -> str:
    """A phrase as a part of a file name: lower-case letters and digits of any script, joined by hyphens.

    At most `limit` characters, never empty: a phrase without a letter or digit is called "phrase".
    """
    kept = []
    for character in unicodedata.normalize("NFKC", text).lower():
        # Marks belong to the letter before them: without its vowel signs Hindi falls apart.
        mark = unicodedata.category(character).startswith("M") and kept and kept[-1] != "-"
        kept.append(character if character.isalnum() or mark else "-")
    name = re.sub("-+", "-", "".join(kept)).strip("-")
    return name[:limit].rstrip("-") or "phrase"


def unique_slugs(phrases: Iterable[str], reserved: Collection[str] = ("overlay",)) -> list[str]:
    """One slug a phrase, all different: later ones get -2, -3, ...

    `reserved` names are not given out, because `<stem>.overlay.png` is not the mask of an "overlay".
    """
    names: list[str] = []
    for phrase in phrases:
        name, number = slug(phrase), 2
        while name in names or name in reserved:
            name, number = f"{slug(phrase)}-{number}", number + 1
        names.append(name)
    return names


def _to_8_bit(image: Image.Image) -> np.ndarray:
    """Deep grey `[H, W]` to uint8 by its range; Pillow's own conversion would clip it to white."""
    values = np.asarray(image).astype(np.float64)
    values[~np.isfinite(values)] = 0
    low, high = values.min(), values.max()
    if image.mode == "F":
        ceilings = (1, 255, 65535)
    else:  # older Pillow versions open 16-bit files as 32-bit "I"
        ceilings = (65535,)
    ceiling = next((top for top in ceilings if 0 <= low and high <= top), None)
    if ceiling is None:
        values, ceiling = values - low, max(high - low, 1e-12)
    return np.round(values * (255 / ceiling)).astype(np.uint8)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise InputError(f"{path}: the picture is empty ({size[0]}x{size[1]} pixels)")
    if size[0] * size[1] > MAX_PIXELS:  # a host may have switched Pillow's own limit off
        raise InputError(_too_large(path))


def _too_large(path: Path) -> str:
    return f"{path}: the picture has more than {MAX_PIXELS // 10**6} megapixels; make it smaller first"


def _unlike(dtype: object, shape: Iterable[int]) -> str:
    return f"expected a picture as float [B, H, W, 3] in 0..1, got {dtype} {list(shape)}"
