"""Pictures in and out: files to RGB pictures, pictures to tensors, results to PNG files with safe names.

Whatever people have on disk either becomes plain 8-bit RGB or is refused in one line. This file knows
nothing of models or masks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError, why
from .files import replacing
from .salvage import salvage

MAX_PIXELS = 178_000_000  # where Pillow, too, suspects a decompression bomb
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike) -> Image.Image:
    """The picture in a file as 8-bit RGB, upright.

    EXIF orientation is applied, transparency is laid on white, CMYK, grey, 16-bit and float pictures are
    converted with their range kept, and of an animation the first frame is taken. Only pixels count: metadata that
    cannot be read is left out, and so is a missing end marker. Raises InputError, in one line that names the file,
    where there is no picture or pixels are missing or there are more than 178 million.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"{path}: this is a folder; name the picture files in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: this is a pipe or a device; save the picture as a file")
    try:
        with Image.open(path) as image:
            _check_size(path, image.size)
            image.load()
            return to_rgb(upright(image))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except Image.DecompressionBombError:
        raise InputError(_too_large(path)) from None
    except Exception as fault:  # decoders raise nearly anything on damaged files, SyntaxError among it
        if isinstance(fault, OSError) and fault.errno:
            raise InputError(f"{path}: this file cannot be read ({why(fault)})") from fault
        image = salvage(path, MAX_PIXELS)
        if image is not None:
            return to_rgb(upright(image))
        if isinstance(fault, UnidentifiedImageError):
            raise InputError(f"{path}: this is not a picture in a format that Pillow reads") from None
        reason = " ".join(str(fault).split()) or type(fault).__name__
        raise InputError(f"{path}: the picture is damaged or cut short ({reason}); save it again") from fault


def upright(image: Image.Image) -> Image.Image:
    """A loaded picture turned as its EXIF orientation says; as it is where that cannot be read."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow raises nearly anything on damaged metadata
        turn = None
    return image if turn is None else image.transpose(turn)


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

    if batch.ndim != 4 or batch.shape[-1] != 3 or 0 in batch.shape[1:]:
        raise InputError(_unlike(image.dtype if hasattr(image, "dtype") else image.mode, batch.shape))
    if not len(batch):  # no pictures, of which nothing can be wrong
        return batch
    low, high = (bound.item() for bound in batch.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"the picture {list(batch.shape)} has values that are not finite (NaN or infinity)")
    if low < -0.5 or high > 1.5:
        raise InputError(
            f"the picture {list(batch.shape)} has values from {low:g} to {high:g}; scale them to 0..1 first"
        )
    return batch.clamp(0, 1)


def to_network(images: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1, as networks read pixels."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_png(path: str | os.PathLike, image: Image.Image) -> None:
    """Write a PNG whole or not at all; missing folders are made.

    Raises InputError that names the file where it cannot be written.
    """
    write_pngs({Path(path): image})


def write_pngs(images: Mapping[Path, Image.Image]) -> None:
    """Write PNGs, all of them or none; missing folders are made.

    Raises InputError that names the file that cannot be written.
    """
    try:
        with ExitStack() as all_written:
            for path, image in images.items():
                image.save(all_written.enter_context(replacing(path)), format="PNG")
    except OSError as fault:
        path = Path(fault.filename2 or path)  # the second is where a finished file could not be moved to
        raise InputError(
            f"cannot write {path.name} into {path.parent} ({why(fault)}); free space there or choose another folder"
        ) from fault


def _to_8_bit(image: Image.Image) -> np.ndarray:
    """Deep grey `[H, W]` to uint8 by its range; Pillow's own conversion would clip it to white. Infinite values become
    the highest and lowest, NaN the lowest. Raises ValueError where no value is finite."""
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError("none of its values is finite")
    low, high = finite.min(), finite.max()
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
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
    if size[0] * size[1] > MAX_PIXELS:  # the program around us may have switched Pillow's own limit off
        raise InputError(_too_large(path))


def _too_large(path: Path) -> str:
    return f"{path}: the picture has more than {MAX_PIXELS // 10**6} megapixels; make it smaller first"


def _unlike(dtype: object, shape: Iterable[int]) -> str:
    return f"expected a picture as float [B, H, W, 3] in 0..1, got {dtype} {list(shape)}"
