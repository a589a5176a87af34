"""`ldznet segment`: pictures and phrases to mask files. No tensor maths here, and nothing is written of a
picture before all its masks are there."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from ..errors import InputError
from ..images import read_image, to_tensor, unique_slugs
from ..refine import refine
from ..segmenter import FEATURE_TEXTS, Segmenter
from .shared import (
    add_mask_options,
    add_model_options,
    add_out_option,
    between,
    check_folder,
    check_text,
    draw,
    measure,
    open_model,
    precision,
    read_phrases,
    warn_of_cuts,
    write,
)

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes DIR/<name>.<phrase>.png, a soft mask in 8-bit grey at the picture's size, for every phrase, "
        "and DIR/<name>.overlay.png, and prints one line of JSON a picture. Where pictures from different "
        "folders have one name, the later ones are called <name>-2, <name>-3, ..."
    )
    parser.add_argument("image", nargs="+", type=Path, metavar="IMAGE", help="a picture file")
    add_mask_options(parser)
    add_out_option(parser, "masks")
    parser.add_argument("--timestep", type=between(0, 999), help="noise at which features are read (400)")
    parser.add_argument(
        "--samples",
        type=between(1, 64),
        default=1,
        help="average the masks of so many noises, each at the cost of one more pass (%(default)s)",
    )
    parser.add_argument(
        "--refine", action="store_true", help="move the masks' edges to those of the picture (no model, no download)"
    )
    parser.add_argument(
        "--authors",
        action="store_true",
        help="read as the authors' demo does: a random timestep in 300..499, a sampled posterior, one of nine "
        "templates, their picture size; masks vary with --seed more than ours do",
    )
    parser.add_argument(
        "--condition",
        choices=FEATURE_TEXTS,
        help="what the model is told while features are read: each phrase (a pass a phrase, the default), "
        "a caption or nothing (one pass for all phrases)",
    )
    parser.add_argument("--caption", help="what the pictures show; implies --condition caption")
    add_model_options(parser)


def run(args: argparse.Namespace) -> Iterator[dict]:
    phrases = read_phrases(args.text)
    condition = choose_condition(args.condition, args.caption)
    if args.authors and args.timestep is not None:
        raise InputError("--timestep has no use with --authors, which draws one: leave one of them out")
    check_folder(args.out)
    files = [
        [args.out / f"{name}.{ending}.png" for ending in (*unique_slugs(phrases), "overlay")]
        for name in unique_names(args.image)
    ]
    check_not_inputs(args.image, [file for group in files for file in group])
    host, decoder = open_model(args)
    segmenter = Segmenter(host, decoder, text=condition, samples=args.samples, authors=args.authors)
    warn_of_cuts(host, [segmenter.template.format(phrase) for phrase in phrases])
    warn_of_cuts(host, [args.caption or ""])

    timestep = 400 if args.timestep is None else args.timestep
    status = 0
    for path, targets in zip(args.image, files, strict=True):
        started = perf_counter()
        try:
            image = to_tensor(read_image(path))
        except InputError as error:  # the other pictures can still be done
            log.error("%s", error)
            status = 2
            continue
        with precision(host.device, args.dtype):
            masks = segmenter(image, phrases, timestep=timestep, seed=args.seed, caption=args.caption or "")[0]
        if args.refine:
            masks = refine(masks, image[0])
        write(draw(image[0], masks, phrases, targets, args.threshold))
        yield {
            "image": str(path),
            "phrases": [
                measure(*one, args.threshold) for one in zip(phrases, masks, targets[:-1], strict=True)
            ],
            "overlay": str(targets[-1]),
            "seconds": round(perf_counter() - started, 3),
        }
    return status


def choose_condition(condition: str | None, caption: str | None) -> str:
    if caption is not None:
        check_text(caption)
        if condition not in (None, "caption"):
            raise InputError(f"--caption has no use with --condition {condition}: leave one of them out")
        return "caption"
    if condition == "caption":
        raise InputError("--condition caption needs a sentence about the pictures: give it with --caption")
    return condition or "phrase"


def unique_names(images: Sequence[Path]) -> list[str]:
    """The stem of each picture, later ones of one name with -2, -3, ... so that none overwrites another."""
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        name, number = image.stem, 2
        while name.casefold() in taken:  # some file systems do not tell A from a
            name, number = f"{image.stem}-{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def check_not_inputs(images: Sequence[Path], targets: Sequence[Path]) -> None:
    """Masks of an earlier run, caught by a `*.png`, would be overwritten before they are read."""
    inputs = {image.resolve() for image in images}
    for target in targets:
        if target.resolve() in inputs:
            raise InputError(
                f"{target} is a picture of this call and would be overwritten: choose another --out"
            )
