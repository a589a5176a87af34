"""What becomes of masks that were found: files and lines of JSON. Nothing is written before everything is there."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..images import unique_slugs, write_png
from ..masks import exclusive, threshold
from ..pictures import figure, overlay
from ..refine import refine
from ..training_free import PRESENT, Found


def endings(phrases: Sequence[str], labels: bool, reserved: Sequence[str] = ()) -> list[str]:
    """What tells the files of one picture apart: a mask a phrase, the overlay, and the labels where asked for. No mask
    is called as these or as what is `reserved`, asked for or not: a phrase always gets the same name."""
    return [*unique_slugs(phrases, reserved=("overlay", "labels", *reserved)), "overlay", *["labels"][:labels]]


def settle(found: Found, image: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor | None]:
    """The masks [P, H, W] of one image [H, W, 3] that are written: of what is present, refined where asked for and,
    with --labels, competing. With them the labels [H, W], or None."""
    masks = found.present(PRESENT if args.presence is None else args.presence)[0]
    if args.refine:
        masks = refine(masks, image, found.reach)
    return exclusive(masks) if args.labels else (masks, None)


def grey(mask: Tensor) -> Image.Image:
    """A soft mask [H, W] in 0..1 as 8-bit grey."""
    return Image.fromarray((mask * 255).round().byte().numpy())


def draw(
    image: Tensor, masks: Tensor, labels: Tensor | None, phrases: Sequence[str], files: Sequence[Path], tau: float
) -> dict[Path, Image.Image]:
    """The pictures of one image [H, W, 3], its masks [P, H, W] and labels [H, W], by file, as `endings` orders them."""
    pictures = [*map(grey, masks), overlay(image, masks, phrases, tau=tau)]
    if labels is not None:
        pictures.append(figure(image, labels, phrases))
    return dict(zip(files, pictures, strict=True))


def report(
    masks: Tensor, found: Found, phrases: Sequence[str], files: Sequence[Path], tau: float
) -> dict[str, Any]:
    """What is printed of one image's masks [P, H, W], of how they were found, and of their files, in the order of
    `endings`."""
    measured = [measure(*one, tau) for one in zip(phrases, masks, files[: len(phrases)], strict=True)]
    if found.presence is not None:
        for one, sigmas in zip(measured, found.presence[0].tolist(), strict=True):
            one["presence"] = round(sigmas, 3)
    pictures = zip(("overlay", "labels"), map(str, files[len(phrases) :]), strict=False)
    return {"phrases": measured, **dict(pictures)}


def measure(phrase: str, mask: Tensor, file: Path, tau: float) -> dict:
    return {
        "text": phrase,
        "mask": str(file),
        "coverage": round(threshold(mask, tau).float().mean().item(), 6),
        "peak": round(mask.max().item(), 6),
    }


def write(pictures: dict[Path, Image.Image]) -> None:
    for file, picture in pictures.items():
        write_png(file, picture)
