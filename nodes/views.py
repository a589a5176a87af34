"""What the panel in the page shows of a run: for each image a picture, and the soft masks of its phrases on one sheet.

The files are small and lie in ComfyUI's temporary folder beside its previews. `web/panel.js` reads them.
"""

import os
import secrets
from dataclasses import dataclass
from math import ceil, sqrt

import folder_paths
from PIL import Image
from torch import Tensor

from ..ldznet_core.imaging.visualize import PALETTE

VIEWS = 16  # images of a batch that the panel shows
SIDE, MASK_SIDE = 1024, 512  # pixels on the long side of a picture and of a mask, at most


@dataclass(frozen=True)
class WithViews:
    """What a node shows: ComfyUI's previews, and views for the panel."""

    previews: object
    views: list[dict]

    def as_dict(self) -> dict:
        return {**self.previews.as_dict(), "ldznet": self.views}


def views_of(images: Tensor | None, masks: Tensor, phrases: list[str]) -> list[dict]:
    """One view for each of the first images [B, H, W, 3], or of masks [B, P, H, W] alone, as the page is told of it."""
    return [view_of(None if images is None else images[i], masks[i], phrases) for i in range(min(len(masks), VIEWS))]


def view_of(image: Tensor | None, masks: Tensor, phrases: list[str]) -> dict:
    """The files of one image [H, W, 3] and its masks [P, H, W] in 0..1.

    The sheet has the masks in rows of `columns`, each of `size`, in 8 bits.
    """
    greys = [shrunk(grey, MASK_SIDE) for grey in map(picture_of, masks)]
    width, height = greys[0].size
    columns = ceil(sqrt(len(greys)))
    sheet = Image.new("L", (columns * width, ceil(len(greys) / columns) * height))
    for i, grey in enumerate(greys):
        sheet.paste(grey, (i % columns * width, i // columns * height))
    return {
        "phrases": phrases,
        "colours": ["#" + bytes(PALETTE[i % len(PALETTE)]).hex() for i in range(len(phrases))],
        "size": [width, height],
        "columns": columns,
        "masks": saved(sheet, "png", compress_level=1),
        "image": None if image is None else saved(shrunk(picture_of(image), SIDE), "jpg", quality=90),
    }


def picture_of(tensor: Tensor) -> Image.Image:
    """[H, W] or [H, W, 3] in 0..1 as a picture."""
    return Image.fromarray((tensor.float().cpu().clamp(0, 1) * 255).round().byte().numpy())


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its long side at most `side`."""
    scale = min(1.0, side / max(picture.size))
    return picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.BILINEAR)


def saved(picture: Image.Image, extension: str, **options) -> dict:
    """Write a picture into the temporary folder; its place, as the page asks for it."""
    folder = folder_paths.get_temp_directory()
    os.makedirs(folder, exist_ok=True)
    name = f"ldznet_{secrets.token_hex(8)}.{extension}"
    picture.save(os.path.join(folder, name), **options)
    return {"filename": name, "subfolder": "", "type": "temp"}
