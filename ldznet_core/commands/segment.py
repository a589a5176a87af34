"""`ldznet segment`: pictures and phrases to mask files. No tensor maths here.

A picture's files are written together, when all its masks are there, and a picture that fails does not end the others.
Several processes may share the work, and a run that was stopped may be resumed.
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, time

from PIL import Image
from torch import Tensor

from ..decoders.base import CONDITIONS
from ..decoders.light import LightDecoder
from ..decoders.unet import MaskDecoder
from ..errors import BAD_INPUT, DONE, FAULT, InputError, brief, is_out_of_memory
from ..imaging.files import remove_unfinished
from ..imaging.images import read_image, to_tensor, write_pngs
from ..imaging.naming import unique_names
from ..segment.base import MaskPrediction
from ..segment.decoder import Segmenter
from ..segment.methods import METHODS, decoder_free
from ..segment.tiles import predict_tiled
from .inputs import find_pictures, read_ahead, read_list
from .manifest import Manifest, version
from .results import draw, endings, name_files, report, settle, stem_bytes
from .shared import (
    add_attention_options,
    add_mask_options,
    add_model_options,
    add_out_option,
    between,
    check_files,
    check_folder,
    check_text,
    check_uses,
    choose_method,
    file_name,
    open_model,
    precision,
    read_phrases,
    refuse,
    showing,
    warn_of_cuts,
)
from .workers import this_worker, worst_status

log = logging.getLogger(__name__)

# Options on which masks do not depend: a run may be resumed with others.
FREE = ("image", "list", "out", "resume", "device", "verbose", "run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes DIR/<name>.<phrase>.png, a soft mask in 8-bit grey at the picture's size, for every phrase, "
        "DIR/<name>.overlay.png and, with --labels, DIR/<name>.labels.png, and prints one line of JSON a picture. "
        "Pictures of one name are called <name>, <name>-2, <name>-3, ...; names too long for the disk are shortened. "
        "A picture that cannot be read or written does not stop the others: the exit status is then 2. "
        "Started by accelerate launch or torchrun, several processes share the pictures and write the same files."
    )
    images = parser.add_argument(
        "image", nargs="+", type=file_name, metavar="IMAGE",
        help="a picture file, a folder of pictures or a pattern such as '*.jpg'",
    )  # fmt: skip
    images.required = False  # there may be a list
    parser.add_argument(
        "--list", type=file_name, metavar="FILE", help="a text file with one IMAGE a line; - reads standard input"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out pictures that an earlier run with the same options has done and that have not changed since",
    )
    add_mask_options(parser)
    add_out_option(parser, "masks")
    parser.add_argument("--timestep", type=between(0, 999), help="noise level of the pass through the model, 0 to 999 "
                        f"(default: {MaskDecoder.timestep}, {LightDecoder.timestep} with a light decoder, "
                        f"{METHODS['attention'].timestep} with --method attention)")
    parser.add_argument(
        "--samples",
        type=between(1, 64),
        help="average the masks of this many noises, each at the cost of one more pass "
        f"({Segmenter.samples}, or {METHODS['noise'].samples} with --method noise)",
    )
    parser.add_argument(
        "--tiles",
        action="store_true",
        help="also go over large pictures in overlapping windows at their own scale, for small things, at the cost of "
        "one more pass a window",
    )
    parser.add_argument(
        "--authors",
        action="store_true",
        help="do as the authors' demo does: a random timestep in 300..499, a sampled posterior, one of nine "
        "templates, their picture size; masks then vary more with --seed",
    )
    parser.add_argument(
        "--condition",
        choices=CONDITIONS,
        help="the text under which features are read: each phrase (one pass a phrase), a caption or no text (one pass "
        "for all phrases); by default no text where the decoder was trained so, else each phrase",
    )
    parser.add_argument("--caption", help="what the pictures show; a decoder's --condition is then the caption")
    add_model_options(parser)
    add_attention_options(parser)


def run(args: argparse.Namespace) -> Iterator[dict]:
    phrases = read_phrases(args.text)
    choose_method(args)
    check_options(args)
    check_folder(args.out)
    worker, begun = this_worker(), time()
    if args.list == "-" and worker.count > 1:
        raise InputError("--list - cannot serve several processes, which share standard input: give a file")
    names = (args.image or []) + (read_list(args.list) if args.list else [])
    pictures, problems = find_pictures(names, args.out)
    if not pictures:
        raise InputError("; ".join(problems) or "no picture is named: name a file or a folder, or give a --list FILE")
    ends = endings(phrases, args.labels)
    # Of all pictures, not of this worker's: names must not depend on how many workers there are.
    stems = unique_names((picture.stem for picture in pictures), room=stem_bytes(args.out, ends))
    check_not_inputs(pictures, (file for stem in stems for file in name_files(args.out, stem, ends)))
    check_files(file for stem in stems for file in name_files(args.out, stem, ends))
    for problem in problems if worker.rank == 0 else []:
        log.error("%s", problem)
    status = BAD_INPUT if problems else DONE

    settings = {option: value for option, value in vars(args).items() if option not in FREE}
    manifest = Manifest(args.out, settings | {"text": phrases}, worker.rank)
    share = work = worker.share(list(zip(pictures, stems, strict=True)))
    if args.resume:
        done = manifest.done()
        work = [
            (picture, stem)
            for picture, stem in share
            if done.get(stem) != (os.path.abspath(picture), version(picture))
            or not all(file.exists() for file in name_files(args.out, stem, ends))
        ]
        log.info("%d of %d pictures are done already", len(share) - len(work), len(share))
    find = open_reader(args, phrases) if work else None
    if not args.resume:
        manifest.clear(worker.count)

    started = perf_counter()
    for number, ((picture, stem), reading) in enumerate(read_ahead(load, work)):
        left = time_left(perf_counter() - started, number, len(work))
        try:
            with showing(f"{number + 1} of {len(work)}{left}: {picture.name}", worker.rank == 0):
                image, its_version = reading.result()
                line = segment(picture, image, name_files(args.out, stem, ends), phrases, find, args)
                manifest.add(stem, picture, its_version, line)
        except InputError as error:
            about = "" if str(picture) in str(error) else f"{picture}: "
            log.error("%s%s", about, error)
            status = status or BAD_INPUT
        except Exception as error:  # the other pictures can still be done
            fault = f"a fault of this program ({brief(error)}); please report it"
            log.error("%s: %s", picture, fault, exc_info=args.verbose)
            status = FAULT
        else:
            yield line
    status = worst_status(worker, status)  # waits for the other workers: none of them writes any more
    remove_unfinished(args.out, before=begun)
    return status


def load(work: tuple[Path, str]) -> tuple[Image.Image, list[int] | None]:
    """The picture of one piece of work, and the version of its file. Raises InputError where there is none."""
    its_version = version(work[0])  # first: a file that changes meanwhile is another version
    return read_image(work[0]), its_version


def segment(
    picture: Path,
    pixels: Image.Image,
    targets: Sequence[Path],
    phrases: Sequence[str],
    find: Callable[[Tensor], MaskPrediction],
    args: argparse.Namespace,
) -> dict:
    """Writes the files of one picture; returns what is printed of it. Raises InputError where it cannot be done."""
    started = perf_counter()
    try:
        image = to_tensor(pixels)
        prediction = find(image)
        masks, labels = settle(prediction, image[0], args)
        drawn = draw(image[0], masks, labels, phrases, targets, args.threshold)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = f"{pixels.width}x{pixels.height}"
        raise InputError(f"{picture}: {size} pixels do not fit into memory; make the picture smaller") from error
    write_pngs(drawn)
    return {
        "image": str(picture),
        **report(masks, prediction, phrases, targets, args.threshold),
        "seconds": round(perf_counter() - started, 3),
    }


def time_left(seconds: float, done: int, total: int) -> str:
    """How long the rest takes at the speed so far."""
    if not done:
        return ""
    rest = seconds / done * (total - done)
    return f", {rest / 60:.0f} min left" if rest > 90 else f", {rest:.0f} s left"


def check_options(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together, before any work."""
    check_uses(args, of_decoders=("authors", "condition"))
    if args.method == "noise":
        refuse(args, ("caption",), "with --method noise")
    if args.authors and args.timestep is not None:
        raise InputError("--timestep has no use with --authors, which draws one: leave one of them out")
    check_text(args.caption or "")
    choose_condition(args.condition, args.caption)


def open_reader(args: argparse.Namespace, phrases: Sequence[str]) -> Callable[[Tensor], MaskPrediction]:
    """What finds the phrases in an image [1, H, W, 3] as the options say."""
    backbone, decoder = open_model(args)
    how = {"seed": args.seed, "caption": args.caption or ""}
    if args.timestep is not None:
        how["timestep"] = args.timestep
    if decoder is None:
        segmenter = decoder_free(backbone, args.method, spread=args.spread or "auto", samples=args.samples)
        conditioning = phrases
    else:
        if not decoder.taps:
            unread = ("timestep", "samples", "condition", "caption")
            refuse(args, unread, f"with {decoder.kind}, which reads no features")
        condition = choose_condition(args.condition, args.caption)
        segmenter = Segmenter(backbone, decoder, text=condition, samples=args.samples, authors=args.authors)
        conditioning = map(segmenter.template.format, phrases)

    warn_of_cuts(backbone, [*conditioning, args.caption or ""])

    predict = partial(predict_tiled, segmenter) if args.tiles else segmenter.predict

    def read(image: Tensor) -> MaskPrediction:
        with precision(backbone.device, args.dtype):
            return predict(image, phrases, **how)

    return read


def choose_condition(condition: str | None, caption: str | None) -> str | None:
    if caption is not None:
        if condition not in (None, "caption"):
            raise InputError(f"--caption has no use with --condition {condition}: leave one of them out")
        return "caption"
    if condition == "caption":
        raise InputError("--condition caption needs a sentence about the pictures: give it with --caption")
    return condition


def check_not_inputs(images: Sequence[Path], targets: Iterable[Path]) -> None:
    """Refuses masks of an earlier run, caught by a `*.png`: they would be overwritten before they are read."""
    inputs = {*map(os.path.realpath, images)}
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise InputError(f"{target} is a picture of this call and would be overwritten: choose another --out")
