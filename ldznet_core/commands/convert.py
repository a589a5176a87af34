"""`ldznet convert`: the authors' checkpoint to a decoder file of ours, a third of its size or less."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..decoders.files import load_decoder, write_decoder
from ..errors import InputError, why
from .shared import DTYPES, check_files, check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads the checkpoint that the authors of LD-ZNet published (or one trained with their code), takes its "
        "averaged weights where it has them, and writes them as a safetensors file that says what it is. The result "
        "goes into ComfyUI's models/ldznet, or after --decoder. Prints one line of JSON."
    )
    parser.add_argument("checkpoint", type=Path, metavar="IN.ckpt", help="such as LDZNet_txt2mask.ckpt")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the weights; float16 halves the file (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def run(args: argparse.Namespace) -> Iterator[dict]:
    if args.out.suffix != ".safetensors":
        raise InputError(f"{args.out}: give the result a name that ends in .safetensors")
    check_folder(args.out.parent)
    check_files([args.out])
    if args.out.exists() and not args.overwrite:
        raise InputError(f"{args.out} exists: name another file, or add --overwrite")
    dtype = getattr(torch, args.dtype)
    decoder = load_decoder(args.checkpoint, dtype=dtype)
    try:
        write_decoder(decoder, decoder.info, args.out, dtype)
    except (OSError, SafetensorError) as fault:
        raise InputError(f"cannot write {args.out} ({why(fault)}): choose another place") from None
    yield {
        "checkpoint": str(args.checkpoint),
        "out": str(args.out),
        "kind": decoder.kind,
        "family": decoder.info.family,
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "dtype": args.dtype,
        "bytes": os.path.getsize(args.out),
    }
