"""What the commands share: options that choose a model or masks, and checks made before any work.

It knows no command.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import InputError
from ..hosts import load_host
from ..masks import BACKGROUND
from ..networks.decoder import KINDS, MaskDecoder
from ..segmenter import check_phrases
from ..training_free import METHODS, PRESENT, SPREADS
from ..weights import load_decoder

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
MAX_SEED = 2**64 - 1


# ---- options -------------------------------------------------------------------------------------


def between(low: float, high: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is outside {low}..{high}")
        return value

    return parse


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="mini",
        metavar="MODEL",
        help="a .safetensors checkpoint of SD 1.x or, to segment, a diffusers folder (default: mini, the bundled one)",
    )
    group.add_argument("--decoder", metavar="FILE", help="default: the one bundled for the model")
    group.add_argument(
        "--method",
        choices=(*KINDS, *METHODS),
        help="the decoder's kind (default: ldznet, or the file's); or, for any model and with no decoder, what its own "
        "attention or its noise estimates say of a phrase",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and computing (%(default)s)")


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="PHRASE",
        help="what to find; give it again for more phrases, or part them by |",
    )
    parser.add_argument("--seed", type=between(0, MAX_SEED), default=0, help="of all noise (%(default)s)")
    parser.add_argument(
        "--threshold",
        type=between(0, 1, float),
        default=0.5,
        help="a pixel above it counts as found, in coverage and overlay; masks stay soft (%(default)s)",
    )
    parser.add_argument(
        "--refine", action="store_true", help="move the masks' edges to those of the picture (no model, no download)"
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="phrases compete: a pixel belongs to the best of them, or to none where none is above "
        f"{BACKGROUND}; also writes labels.png, a map of them",
    )


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --method attention")
    group.add_argument(
        "--spread",
        choices=SPREADS,
        help="how far masks run along what belongs together: to the edges of objects, a little for stuff such as "
        "grass, or not at all (default: auto, objects where the model can tell)",
    )
    group.add_argument(
        "--presence",
        type=between(0, math.inf, float),
        metavar="SIGMAS",
        help="a phrase whose attention peaks less than so many standard deviations above what pure noise gets is not "
        f"there: its mask is all 0 (default: {PRESENT}; 0 takes your word for it)",
    )


def add_out_option(parser: argparse.ArgumentParser, folder: str) -> None:
    about = f"made if missing (default: {folder}, in the current folder)"
    parser.add_argument("--out", type=Path, default=Path(folder), metavar="DIR", help=about)


# ---- checks before any work ----------------------------------------------------------------------


def check_uses(args: argparse.Namespace, of_decoders: Sequence[str] = ()) -> None:
    """Raises InputError for an option that --method has no use for; `of_decoders` are those of the command that only
    reading with a decoder has."""
    if args.method in METHODS:
        refuse(args, ("decoder", *of_decoders), f"with --method {args.method}")
    if args.method != "attention":
        refuse(args, ("spread", "presence"), "without --method attention")


def refuse(args: argparse.Namespace, options: Iterable[str], where: str) -> None:
    """Raises InputError where one of the options, None or False by default, was given."""
    for option in options:
        value = getattr(args, option)
        if value is not None and value is not False:
            raise InputError(f"--{option} has no use {where}: leave it out, or choose another --method")


def open_model(args: argparse.Namespace) -> tuple[Any, MaskDecoder | None]:
    """The host and decoder that the options name, None for a method that needs no decoder. Raises InputError where
    they cannot be had."""
    device = choose_device(args.device)
    check_dtype(device, args.dtype)
    if args.method in METHODS:
        return load_host(args.model, device, args.dtype), None
    if args.decoder is None and args.model != "mini":
        raise InputError(
            f"no decoder is bundled for the model {args.model}: give one with --decoder FILE, or use "
            "--method attention, which needs none"
        )
    host = load_host(args.model, device, args.dtype)
    return host, load_decoder(args.decoder or "mini", kind=args.method, dtype=getattr(torch, args.dtype))


def choose_device(name: str | None) -> str:
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"--device {name} does not work here ({reason}): use --device cpu") from None
    return name


def precision(device: str | torch.device, dtype: str) -> AbstractContextManager:
    """Networks inside compute in `dtype`, whatever they are given: no layer meets a type it cannot take."""
    return torch.autocast(torch.device(device).type, getattr(torch, dtype), enabled=dtype != "float32")


def check_dtype(device: str, dtype: str) -> None:
    """Refuse now what would fail later, or silently stay float32."""
    try:
        with precision(device, dtype):
            works = F.conv2d(*torch.ones(2, 1, 1, 1, 1, device=device)).dtype == getattr(torch, dtype)
    except RuntimeError:
        works = False
    if not works:
        raise InputError(f"--dtype {dtype} does not work on {device}: use --dtype float32")


def read_phrases(texts: Iterable[str]) -> list[str]:
    """Phrases from the command line, `a | b` being two. Raises InputError where one is empty."""
    phrases = check_phrases([phrase for text in texts for phrase in text.split("|")])
    for phrase in phrases:
        check_text(phrase)
    return phrases


def check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{text!r} is no text: its characters are damaged, write it in UTF-8") from None


def warn_of_cuts(host, texts: Iterable[str]) -> None:
    for text in texts:
        if cut := host.tokens_cut(text):
            begin = text if len(text) <= 40 else text[:40] + "..."
            log.warning("%r is too long: the model reads the first 75 tokens and leaves out %d", begin, cut)


def check_folder(folder: Path) -> None:
    """Raises InputError where files could not be written into `folder`; makes nothing yet."""
    existing = next(p for p in (folder, *folder.parents, Path(".")) if os.path.exists(p))
    if not existing.is_dir():
        raise InputError(f"cannot write into {folder}: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {folder}: {existing} is closed to you; choose another --out")


# ---- while working -------------------------------------------------------------------------------


def progress(what: str) -> Callable[[int, int], None] | None:
    """Tells on one line of the terminal how far the work is; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        sys.stderr.write(f"\r{what} {done}/{total}" if done < total else "\r\033[K")
        sys.stderr.flush()

    return tell
