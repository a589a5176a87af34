"""Pictures of masks, to be looked at: overlays, label maps, cut-outs, panels.

Pure functions on a picture and its masks in 0..1. This file knows no model and writes no file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .chips import INK, PAPER, Box, chip, chip_size, fit, font, inside

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, the most unlike first.
PALETTE = (
    (86, 180, 233),  # sky blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # green
    (204, 121, 167),  # pink
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
)
MISSING = (88, 92, 98)  # the chip of a phrase that was not found
READABLE = 512  # pixels on the long side, below which labels would cover the picture


def overlay(image: Tensor, masks: Tensor, labels: Sequence[str], *, tau: float = 0.5) -> Image.Image:
    """The picture with every phrase's object tinted, outlined at `tau` and named, and the rest stepped back.

    image: `[H, W, 3]` in 0..1. masks: `[P, H, W]` in 0..1. labels: P phrases. Phrases without a pixel above
    `tau` are named in a grey chip in the corner. Pictures below 512 pixels are enlarged. Raises InputError
    where shapes do not fit each other.
    """
    _expect_picture(image)
    _expect(
        masks.ndim == 3 and masks.shape[1:] == image.shape[:2] and len(labels) == len(masks),
        "an overlay needs one mask and one label a phrase, at the picture's size; "
        f"got picture {list(image.shape)}, masks {list(masks.shape)} and {len(labels)} labels",
    )
    picture, soft = _readable(image.detach().float().cpu(), masks.detach().float().cpu())
    found = [index for index in range(len(labels)) if (masks[index] > tau).any()]
    colours = [PALETTE[index % len(PALETTE)] for index in range(len(labels))]

    pixels = _tinted(picture, soft[found], [colours[index] for index in found])
    for index in found:
        _outlined(pixels, soft[index], colours[index], tau)

    canvas = Image.fromarray(_to_bytes(pixels))
    size = min(max(15, max(canvas.size) // 34), max(8, int(canvas.height * 0.5)))
    taken: list[Box] = []
    missing = [label for index, label in enumerate(labels) if index not in found]
    _note_missing(canvas, missing, size, taken)
    # Small objects have the fewest places for a label, so they choose first.
    for index in sorted(found, key=lambda index: float((soft[index] > tau).sum())):
        _name(canvas, labels[index], soft[index], colours[index], size, tau, taken)
    return canvas


def label_map(labels: Tensor, phrases: Sequence[str]) -> Image.Image:
    """One colour a phrase, black for the background, and a legend below it.

    labels: `[H, W]`, 0 for the background, else the number of the phrase from 1. Colours come round again after
    seven phrases, so the legend also gives each phrase's number and its share of the picture. Beside a map that is too
    narrow for it, it sticks out to the right.
    """
    _expect(
        labels.ndim == 2 and 0 <= int(labels.min()) and int(labels.max()) <= len(phrases),
        f"a label map needs labels [H, W] of 0 to {len(phrases)}, got {list(labels.shape)}",
    )
    colours = [(0, 0, 0), *(PALETTE[i % len(PALETTE)] for i in range(len(phrases)))]
    flat = Image.fromarray(np.uint8(colours)[labels.cpu().numpy()])
    shares = [float((labels == i + 1).float().mean()) for i in range(len(phrases))]
    size = max(9, max(flat.size) // 34)
    margin, width = size // 2, max(flat.width, 6 * size)
    places, left, top = [], margin, flat.height + margin
    for i, phrase in enumerate(phrases):
        text, room = f"{i + 1} {phrase} {shares[i]:.0%}", width - 2 * margin
        # As wide as it can get, so that the maps of a batch are laid out alike.
        chip_width, chip_height, _ = chip_size(f"{i + 1} {phrase} 100%", size, room)
        if left > margin and left + chip_width > width - margin:
            left, top = margin, top + chip_height + margin
        text = fit(text, size, room - 2 * round(size * 0.55))
        places.append((Box(left, top, left + chip_width, top + chip_height), text))
        left += chip_width + margin
    sheet = Image.new("RGB", (width, places[-1][0].bottom + margin if places else flat.height), INK)
    sheet.paste(flat)
    for i, (place, text) in enumerate(places):
        chip(sheet, place, text, size, colours[i + 1] if shares[i] else MISSING)
    return sheet


def panel(images: Sequence[Image.Image], titles: Sequence[str], *, height: int = 384) -> Image.Image:
    """Pictures side by side at one height, each under its title, on white."""
    _expect(
        0 < len(images) == len(titles),
        f"a panel needs one title a picture, got {len(images)} pictures and {len(titles)} titles",
    )
    gap = max(8, height // 32)
    size = max(12, height // 20)
    head = 2 * size
    cells = [_at_height(image, height) for image in images]
    sheet = Image.new(
        "RGB",
        (sum(cell.width for cell in cells) + gap * (len(cells) + 1), head + height + gap),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    left = gap
    for cell, title in zip(cells, titles, strict=True):
        text = fit(title, size, cell.width)
        draw.text((left + cell.width / 2, head / 2 + 1), text, INK, font(size), anchor="mm")
        sheet.paste(cell, (left, head))
        left += cell.width + gap
    return sheet


def figure(image: Tensor, labels: Tensor, phrases: Sequence[str]) -> Image.Image:
    """The picture and its label map side by side at one scale, as papers show how several objects are told apart.

    image: `[H, W, 3]` in 0..1. labels: `[H, W]`, as for `label_map`. Pictures below 512 pixels are enlarged. Raises
    InputError where shapes do not fit each other.
    """
    _expect_picture(image)
    _expect(
        labels.shape == image.shape[:2],
        f"the labels {list(labels.shape)} do not fit the picture {list(image.shape)}",
    )
    picture, _ = _readable(image.detach().float().cpu(), torch.zeros(0, *labels.shape))
    size = picture.shape[:2]
    flat = label_map(functional.interpolate(labels[None, None].float().cpu(), size)[0, 0].long(), phrases)
    sheet = Image.new("RGB", flat.size, PAPER)  # as high as the map with its legend, so that both keep their scale
    sheet.paste(Image.fromarray(_to_bytes(picture)))
    return panel([sheet, flat], ["picture", "labels"], height=flat.height)


# --- the overlay's picture ------------------------------------------------------------------------------


def _tinted(picture: np.ndarray, soft: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """`[H, W, 3]`: objects in their colours, the rest dimmed; alpha follows the soft masks `[P, H, W]`."""
    grey = picture @ np.float32([0.299, 0.587, 0.114])  # [H, W]
    rest = 0.62 * (0.45 * picture + 0.55 * grey[..., None]) + 0.05
    if not len(soft):
        return rest
    alpha = soft.max(0)[..., None]  # [H, W, 1]
    shares = soft / np.maximum(soft.sum(0), 1e-6)  # [P, H, W], objects that overlap share the colour
    colour = np.moveaxis(shares, 0, -1) @ (np.float32(colours) / 255)  # [H, W, 3]
    tint = 0.62 * picture + 0.38 * colour * (0.35 + 0.65 * grey[..., None] ** 0.5)  # keeps light and shade
    return rest + alpha * (tint - rest)


def _outlined(pixels: np.ndarray, soft: np.ndarray, colour: tuple[int, int, int], tau: float) -> None:
    """Draw into `pixels` the line where `soft` `[H, W]` = tau, over a darker one that sets it off."""
    width = max(1.4, max(soft.shape) / 480)
    box = crop_box(torch.from_numpy(soft), tau, pad=round(width) + 3)
    if box is None:
        return
    window = np.s_[box[1] : box[3], box[0] : box[2]]
    around = functional.pad(torch.from_numpy(soft[window])[None, None], (1, 1, 1, 1), mode="replicate")
    smooth = functional.avg_pool2d(around, 3, 1)[0, 0].numpy()  # [h, w]
    slopes = [np.gradient(smooth, axis=axis) for axis in (0, 1) if smooth.shape[axis] > 1]
    slope = np.sqrt(sum(along**2 for along in slopes) + 1e-12)
    # To first order the line lies |m - tau| / |grad m| pixels away; on flat ground there is none.
    away = np.where(slope > 1e-3, np.abs(smooth - tau) / slope, np.inf)
    ink = np.float32(colour) / 255
    for reach, strength, tone in ((width / 2 + 1, 0.5, 0.1 * ink), (width / 2, 1.0, 0.85 * ink + 0.15)):
        line = strength * np.clip(reach + 0.5 - away, 0, 1)[..., None]  # [h, w, 1]
        pixels[window] += line * (tone - pixels[window])


def _readable(image: Tensor, masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Picture `[H, W, 3]` and masks `[P, H, W]` with a long side of at least 512, as arrays."""
    height, width = image.shape[:2]
    scale = READABLE / max(height, width)
    image, masks = image.clamp(0, 1), masks.clamp(0, 1)
    if scale > 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        image = (
            functional.interpolate(image.permute(2, 0, 1)[None], size, mode="bicubic", align_corners=False)[0]
            .permute(1, 2, 0)
            .clamp(0, 1)
        )
        if len(masks):
            masks = functional.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
        else:
            masks = masks.new_zeros(0, *size)
    return image.numpy(), masks.numpy()


# --- its labels -----------------------------------------------------------------------------------------


def _name(
    canvas: Image.Image,
    label: str,
    soft: np.ndarray,
    colour: tuple[int, int, int],
    size: int,
    tau: float,
    taken: list[Box],
) -> None:
    """Put a phrase's chip on its object where that is roomy, beside it where not, clear of other chips."""
    box = crop_box(torch.from_numpy(soft), tau)
    if box is None:  # enlarging has smoothed a single pixel away: point at the peak
        row, column = np.unravel_index(int(soft.argmax()), soft.shape)
        box = (int(column), int(row), int(column) + 1, int(row) + 1)
    left, top, right, bottom = box
    weight = np.where(soft > tau, soft, 0) if (soft > tau).any() else soft
    middle = (
        float((weight.sum(0) * np.arange(soft.shape[1])).sum() / weight.sum()),
        float((weight.sum(1) * np.arange(soft.shape[0])).sum() / weight.sum()),
    )
    width, height, text = chip_size(label, size, canvas.width)
    gap = height // 2 + 4
    beside = [(middle[0], top - gap), (middle[0], bottom + gap)]
    roomy = right - left > 1.6 * width and bottom - top > 4 * height
    wishes = [middle, *beside] if roomy else [*beside, middle]
    # Then ever wider rings around the middle.
    for reach in range(1, 12):
        for angle in np.arange(0, 2 * np.pi, np.pi / 6):
            wishes.append(
                (
                    middle[0] + np.cos(angle) * reach * width / 3,
                    middle[1] + np.sin(angle) * reach * height * 0.7,
                )
            )
    places = [inside(canvas, x - width / 2, y - height / 2, width, height) for x, y in wishes]
    place = next((place for place in places if not any(map(place.meets, taken))), places[0])
    taken.append(place)
    chip(canvas, place, text, size, colour)


def _note_missing(canvas: Image.Image, labels: list[str], size: int, taken: list[Box]) -> None:
    """Grey chips, from the bottom left corner upwards, for phrases that were not found."""
    margin = size // 2
    bottom = canvas.height - margin
    for label in reversed(labels):
        width, height, text = chip_size(f"no {label}", size, canvas.width)
        place = inside(canvas, margin, bottom - height, width, height)
        if any(map(place.meets, taken)):
            return  # the picture is full
        taken.append(place)
        chip(canvas, place, text, size, MISSING)
        bottom = place.top - margin // 2


def _at_height(image: Image.Image, height: int) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(_checkerboard(image.size), image)
    width = max(1, round(image.width * height / image.height))
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    """The ground that shows transparency."""
    width, height = size
    step = max(1, max(size) // 32)
    dark = (np.arange(height)[:, None] // step + np.arange(width) // step) % 2  # [H, W]
    return Image.fromarray(np.where(dark, 214, 240).astype(np.uint8)).convert("RGBA")


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _expect(fits: bool, message: str) -> None:
    if not fits:
        raise InputError(message)


def _expect_picture(image: Tensor) -> None:
    _expect(
        image.ndim == 3 and image.shape[-1] == 3 and 0 not in image.shape,
        f"expected one picture [H, W, 3], got {list(image.shape)}",
    )


def cut_out(image: Tensor, mask: Tensor) -> Image.Image:
    """The object on transparent ground: `image` `[H, W, 3]` and `mask` `[H, W]`, both in 0..1 -> RGBA."""
    _expect_picture(image)
    _expect(
        mask.shape == image.shape[:2],
        f"the mask {list(mask.shape)} does not fit the picture {list(image.shape)}",
    )
    rgba = torch.cat([image.cpu(), mask.cpu()[..., None]], -1)  # [H, W, 4]
    return Image.fromarray(_to_bytes(rgba.numpy()), "RGBA")


def crop_box(mask: Tensor, tau: float = 0.5, pad: int = 0) -> tuple[int, int, int, int] | None:
    """The smallest box around `mask` `[H, W]` > tau, widened by `pad` pixels and kept inside the picture.

    Returns (left, top, right, bottom), right and bottom exclusive as in `PIL.Image.crop`, or None where
    nothing is above the threshold.
    """
    if mask.ndim != 2:
        raise InputError(f"a crop box needs one mask [H, W], got {list(mask.shape)}")
    above = mask > tau
    rows, columns = above.any(1).nonzero().flatten().tolist(), above.any(0).nonzero().flatten().tolist()
    if not rows:
        return None
    height, width = mask.shape
    return (
        max(columns[0] - pad, 0),
        max(rows[0] - pad, 0),
        min(columns[-1] + 1 + pad, width),
        min(rows[-1] + 1 + pad, height),
    )
