"""What becomes of predicted masks: files and lines of JSON. Nothing is written before everything is there."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..imaging.naming import name_bytes, size, unique_slugs
from ..imaging.visualize import figure, overlay
from ..segment.base import PRESENT, MaskPrediction
from ..segment.guided_filter import refine
from ..segment.postprocess import exclusive, threshold


def endings(phrases: Sequence[str], labels: bool, reserved: Sequence[str] = ()) -> list[str]:
    """What tells the files of one picture apart: a mask a phrase, the overlay, and with `labels` the labels. No mask
    is ever called overlay, labels or one of `reserved`, so that a phrase always has the same name."""
    return [*unique_slugs(phrases, reserved=("overlay", "labels", *reserved)), "overlay", *["labels"][:labels]]


def stem_bytes(out: Path, ends: Iterable[str]) -> int:
    """The most bytes that a stem may take where `out` is to hold the files `<stem>.<end>.png`."""
    return name_bytes(out) - max(size(f".{end}.png") for end in ends)


def name_files(out: Path, stem: str, ends: Iterable[str]) -> list[Path]:
    return [out / f"{stem}.{end}.png" for end in ends]


def settle(prediction: MaskPrediction, image: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor | None]:
    """The masks [P, H, W] of one image [H, W, 3] that are written: all 0 for absent phrases, refined with --refine,
    competing with --labels, and with it the labels [H, W], else None. Raises InputError where one is not finite."""
    if not prediction.masks.isfinite().all() or (prediction.presence is not None and prediction.presence.isnan().any()):
        raise InputError(
            "the masks have values that are not finite (NaN or infinity): the model overflows, so try --dtype float32 "
            "or bfloat16, or another --timestep"
        )
    masks = prediction.present(PRESENT if args.presence is None else args.presence)[0]
    if args.refine:
        masks = refine(masks, image, prediction.reach)
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
    masks: Tensor, prediction: MaskPrediction, phrases: Sequence[str], files: Sequence[Path], tau: float
) -> dict[str, Any]:
    """What is printed of one image: its masks [P, H, W], the presence in their prediction, and its files in the order
    of `endings`."""
    measured = [measure(*one, tau) for one in zip(phrases, masks, files[: len(phrases)], strict=True)]
    if prediction.presence is not None:
        for one, sigmas in zip(measured, prediction.presence[0].tolist(), strict=True):
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
