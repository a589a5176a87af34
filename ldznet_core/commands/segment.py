"""`ldznet segment`: pictures and phrases to mask files. No tensor maths here, and nothing is written of a
picture before all its masks are there."""

import argparse
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

from torch import Tensor

from ..errors import InputError
from ..images import read_image, to_tensor
from ..refine import REACH
from ..segmenter import FEATURE_TEXTS, Segmenter
from ..training_free import SAMPLES, TIMESTEPS, Found, TrainingFree
from .results import draw, endings, report, settle, write
from .shared import (
    add_attention_options,
    add_mask_options,
    add_model_options,
    add_out_option,
    between,
    check_folder,
    check_text,
    check_uses,
    open_model,
    precision,
    read_phrases,
    refuse,
    warn_of_cuts,
)

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes DIR/<name>.<phrase>.png, a soft mask in 8-bit grey at the picture's size, for every phrase, "
        "DIR/<name>.overlay.png and, with --labels, DIR/<name>.labels.png, and prints one line of JSON a picture. "
        "Where pictures from different folders have one name, the later ones are called <name>-2, <name>-3, ..."
    )
    parser.add_argument("image", nargs="+", type=Path, metavar="IMAGE", help="a picture file")
    add_mask_options(parser)
    add_out_option(parser, "masks")
    parser.add_argument("--timestep", type=between(0, 999), help="noise at which the model is read "
                        f"({TIMESTEPS['noise']}, or {TIMESTEPS['attention']} with --method attention)")
    parser.add_argument(
        "--samples",
        type=between(1, 64),
        help="average the masks of so many noises, each at the cost of one more pass "
        f"(1, or {SAMPLES['noise']} with --method noise)",
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
    parser.add_argument("--caption", help="what the pictures show; a decoder's --condition is then the caption")
    add_model_options(parser)
    add_attention_options(parser)


def run(args: argparse.Namespace) -> Iterator[dict]:
    phrases = read_phrases(args.text)
    check_options(args)
    check_folder(args.out)
    names = endings(phrases, args.labels)
    files = [[args.out / f"{stem}.{name}.png" for name in names] for stem in unique_names(args.image)]
    check_not_inputs(args.image, [file for group in files for file in group])
    find = open_reader(args, phrases)

    status = 0
    for path, targets in zip(args.image, files, strict=True):
        started = perf_counter()
        try:
            image = to_tensor(read_image(path))
        except InputError as error:  # the other pictures can still be done
            log.error("%s", error)
            status = 2
            continue
        found = find(image)
        masks, labels = settle(found, image[0], args)
        write(draw(image[0], masks, labels, phrases, targets, args.threshold))
        yield {
            "image": str(path),
            **report(masks, found, phrases, targets, args.threshold),
            "seconds": round(perf_counter() - started, 3),
        }
    return status


def check_options(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together, before any work."""
    check_uses(args, of_decoders=("authors", "condition"))
    if args.method == "noise":
        refuse(args, ("caption",), "with --method noise")
    if args.authors and args.timestep is not None:
        raise InputError("--timestep has no use with --authors, which draws one: leave one of them out")
    check_text(args.caption or "")
    choose_condition(args.condition, args.caption)


def open_reader(args: argparse.Namespace, phrases: Sequence[str]) -> Callable[[Tensor], Found]:
    """What finds the phrases in an image [1, H, W, 3] as the options say."""
    host, decoder = open_model(args)
    how = {"seed": args.seed, "caption": args.caption or ""}
    if args.timestep is not None:
        how["timestep"] = args.timestep
    if decoder is None:
        find = TrainingFree(host, args.method, spread=args.spread or "auto", samples=args.samples).find
        said = phrases
    else:
        if not decoder.taps:
            unread = ("timestep", "samples", "condition", "caption")
            refuse(args, unread, f"with {decoder.kind}, which reads no features")
        condition = choose_condition(args.condition, args.caption)
        segmenter = Segmenter(host, decoder, text=condition, samples=args.samples or 1, authors=args.authors)
        said = map(segmenter.template.format, phrases)

        def find(image: Tensor, phrases: Sequence[str], **how) -> Found:
            return Found(segmenter(image, phrases, **how), None, REACH)

    warn_of_cuts(host, [*said, args.caption or ""])

    def read(image: Tensor) -> Found:
        with precision(host.device, args.dtype):
            return find(image, phrases, **how)

    return read


def choose_condition(condition: str | None, caption: str | None) -> str:
    if caption is not None:
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
