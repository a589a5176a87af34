"""What the commands share: options that choose a model or masks, and checks made before any work.

It knows no command.
"""

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import torch
import torch.nn.functional as F

from ..backbones.load import load_backbone
from ..decoders.base import Decoder
from ..decoders.files import load_decoder
from ..decoders.registry import DECODERS
from ..errors import InputError, why
from ..imaging.naming import NAME_BYTES, size
from ..segment.attention import SPREADS
from ..segment.base import PRESENT
from ..segment.methods import METHODS
from ..segment.phrases import check_phrases
from ..segment.postprocess import BACKGROUND
from .workers import this_worker

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


def file_name(text: str) -> str:
    """An argparse type: the name of a file or folder. Python would take an empty one for the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def folder_name(text: str) -> Path:
    """An argparse type, as `file_name`."""
    return Path(file_name(text))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=file_name,
        default="mini",
        metavar="MODEL",
        help="a .safetensors checkpoint of SD 1.x or, to segment, a diffusers folder; mini-dit is the miniature "
        "transformer (default: mini, the bundled UNet)",
    )
    decoder = "a decoder file (default: the one bundled for the model)"
    group.add_argument("--decoder", type=file_name, metavar="FILE", help=decoder)
    group.add_argument(
        "--method",
        choices=(*DECODERS, *METHODS),
        help="the decoder's kind (default: light, or the file's); or attention or noise, which need no decoder: "
        "masks from any model's own attention (the default of mini-dit) or noise estimates",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and computing (%(default)s)")


def add_mask_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="PHRASE",
        help="what to find; repeat the option for more phrases, or separate them by |",
    )
    parser.add_argument("--seed", type=between(0, MAX_SEED), default=0, help="seed of all noise (%(default)s)")
    parser.add_argument(
        "--threshold",
        type=between(0, 1, float),
        default=0.5,
        help="pixels above it count in coverage and overlay; masks stay soft (%(default)s)",
    )
    parser.add_argument(
        "--refine", action="store_true", help="move the masks' edges to those of the picture (no model, no download)"
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="let the phrases compete: a pixel belongs to the phrase with the highest mask, or to none where that is "
        f"not above {BACKGROUND}; also writes labels.png, a map of the winners",
    )


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --method attention")
    group.add_argument(
        "--spread",
        choices=SPREADS,
        help="how far masks spread to similar positions: to the edges of objects, a little for stuff such as grass, or "
        "not at all (default: auto, objects where the model can tell)",
    )
    group.add_argument(
        "--presence",
        type=between(0, math.inf, float),
        metavar="SIGMAS",
        help="a phrase whose attention peaks less than so many standard deviations above that of pure noise, or that a "
        f"light decoder gives less (even odds are {PRESENT}), counts as absent: its mask is all 0 (default: {PRESENT}; "
        "0 turns the check off)",
    )


def add_out_option(parser: argparse.ArgumentParser, folder: str) -> None:
    about = f"folder for the results, made if missing (default: {folder}, in the current folder)"
    parser.add_argument("--out", type=folder_name, default=Path(folder), metavar="DIR", help=about)


def choose_method(args: argparse.Namespace) -> None:
    """Where nothing is chosen, the method of the miniature transformer is attention: no decoder fits it."""
    if args.model == "mini-dit" and args.method is None and args.decoder is None:
        args.method = "attention"


# ---- checks before any work ----------------------------------------------------------------------


def check_uses(args: argparse.Namespace, of_decoders: Sequence[str] = ()) -> None:
    """Raises InputError for an option that --method has no use for; `of_decoders` are options of the command that only
    decoders use."""
    if args.method in METHODS:
        refuse(args, ("decoder", *of_decoders), f"with --method {args.method}")
    if args.method != "attention":
        refuse(args, ("spread",), "without --method attention")
    if args.method in METHODS and not METHODS[args.method].tells_presence:
        refuse(args, ("presence",), f"with --method {args.method}")


def refuse(args: argparse.Namespace, options: Iterable[str], where: str) -> None:
    """Raises InputError where one of the options is set; None and False are what they are by default."""
    for option in options:
        value = getattr(args, option)
        if value is not None and value is not False:
            raise InputError(f"--{option} has no use {where}: leave it out")


def open_model(args: argparse.Namespace) -> tuple[Any, Decoder | None]:
    """The backbone and decoder that the options name, None for a method that needs no decoder. Raises InputError where
    they cannot be loaded."""
    device = choose_device(args.device)
    check_dtype(device, args.dtype)
    if args.method in METHODS:
        return load_backbone(args.model, device, args.dtype), None
    if args.decoder is None and args.model != "mini":
        raise InputError(
            f"no decoder is bundled for the model {args.model}: give one with --decoder FILE, or use "
            "--method attention, which needs none"
        )
    backbone = load_backbone(args.model, device, args.dtype)
    decoder = load_decoder(args.decoder or "mini", kind=args.method, dtype=getattr(torch, args.dtype))
    if not decoder.tells_presence:
        refuse(args, ("presence",), f"with a decoder of kind {decoder.kind}")
    return backbone, decoder


def choose_device(name: str | None) -> str:
    """The device of that name, by default a GPU if there is one; workers on one machine take its GPUs in turn. Raises
    InputError where it does not work."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    worker = this_worker()
    if name == "cuda" and worker.count > 1 and torch.cuda.is_available():
        name = f"cuda:{worker.local_rank % torch.cuda.device_count()}"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"--device {name} does not work here ({reason}): use --device cpu") from None
    return name


def precision(device: str | torch.device, dtype: str) -> AbstractContextManager:
    """Networks inside compute in `dtype`, whatever the dtype of their inputs."""
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


def warn_of_cuts(backbone, texts: Iterable[str]) -> None:
    for text in texts:
        if cut := backbone.tokens_cut(text):
            begin = text if len(text) <= 40 else text[:40] + "..."
            log.warning("%r is too long: the model reads the first 75 tokens and leaves out %d", begin, cut)


def check_folder(folder: Path) -> None:
    """Raises InputError where files could not be written into `folder`; makes nothing yet."""
    for part in folder.parts:
        if size(part) > NAME_BYTES:
            raise InputError(f"cannot write into {folder}: {part[:20]}... is too long for a name; choose another place")
    existing = next(p for p in (folder, *folder.parents, Path(".")) if os.path.lexists(p))
    if not existing.is_dir():
        what = "a file" if os.path.exists(existing) else "a link that leads nowhere"
        raise InputError(f"cannot write into {folder}: {existing} is {what}; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into {folder}: {existing} is closed to you; choose another place")


def check_files(files: Iterable[Path]) -> None:
    """Raises InputError where files of these names could not be written; makes none yet."""
    for file in files:
        try:
            file.lstat()
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise InputError(f"cannot write {file} ({why(fault)}): choose another place") from None
        if file.is_dir():
            raise InputError(f"cannot write {file}: there is a folder of that name; choose another place")


# ---- while working -------------------------------------------------------------------------------


@contextmanager
def showing(text: str, wanted: bool = True) -> Iterator[None]:
    """Shows one line on the terminal while the block runs; nothing where it is not wanted or stderr is no terminal."""
    if not wanted or not sys.stderr.isatty():
        yield
        return
    sys.stderr.write("\r" + text[: get_terminal_size().columns - 1])  # a line that wraps could not be taken back
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()


def progress(what: str) -> Callable[[int, int], None] | None:
    """Tells on one line of the terminal how far the work is; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        sys.stderr.write(f"\r{what} {done}/{total}" if done < total else "\r\033[K")
        sys.stderr.flush()

    return tell
