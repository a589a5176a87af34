"""What the commands share: options that choose a model, checks made before any work, and results as files.

It knows no command. Nothing is written before everything is computed.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..hosts import load_host
from ..images import write_png
from ..masks import threshold
from ..networks.decoder import KINDS, MaskDecoder
from ..pictures import overlay
from ..segmenter import check_phrases
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
    group.add_argument("--method", choices=KINDS, help="the decoder's kind (default: ldznet, or the file's)")
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


def add_out_option(parser: argparse.ArgumentParser, folder: str) -> None:
    about = f"made if missing (default: {folder}, in the current folder)"
    parser.add_argument("--out", type=Path, default=Path(folder), metavar="DIR", help=about)


# ---- checks before any work ----------------------------------------------------------------------


def open_model(args: argparse.Namespace) -> tuple[Any, MaskDecoder]:
    """The host and decoder that the options name. Raises InputError where they cannot be had."""
    device = choose_device(args.device)
    check_dtype(device, args.dtype)
    if args.decoder is None and args.model != "mini":
        raise InputError(f"no decoder is bundled for the model {args.model}: give one with --decoder FILE")
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


# ---- results -------------------------------------------------------------------------------------


def grey(mask: Tensor) -> Image.Image:
    """A soft mask [H, W] in 0..1 as 8-bit grey."""
    return Image.fromarray((mask * 255).round().byte().numpy())


def measure(phrase: str, mask: Tensor, file: Path, tau: float) -> dict:
    return {
        "text": phrase,
        "mask": str(file),
        "coverage": round(threshold(mask, tau).float().mean().item(), 6),
        "peak": round(mask.max().item(), 6),
    }


def draw(image: Tensor, masks: Tensor, phrases: Sequence[str], files: Sequence[Path], tau: float) -> dict:
    """The pictures of one image [H, W, 3] and its masks [P, H, W], by file: a mask a phrase, the overlay last."""
    pictures = [*map(grey, masks), overlay(image, masks, phrases, tau=tau)]
    return dict(zip(files, pictures, strict=True))


def write(pictures: dict[Path, Image.Image]) -> None:
    for file, picture in pictures.items():
        write_png(file, picture)


def progress(what: str) -> Callable[[int, int], None] | None:
    """Tells on one line of the terminal how far the work is; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        return None

    def tell(done: int, total: int) -> None:
        sys.stderr.write(f"\r{what} {done}/{total}" if done < total else "\r\033[K")
        sys.stderr.flush()

    return tell
