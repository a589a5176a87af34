"""`ldznet bench`: what masks cost on this machine, against the authors' way and plain sampling, in one run."""

import argparse
from collections.abc import Iterator

from ..errors import InputError
from ..segment.base import GRID
from .shared import between, check_dtype, choose_device, file_name, precision, progress, refuse

METHODS = ("light", "ldznet", "znet", "attention", "noise")
SIZES = ("sd1",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Times every method from an image, from a latent and while sampling, for one and eight phrases and pictures. "
        "All ways take turns in one run: what counts is their ratios. 'The authors' way' is a phrase at a time, with "
        "the whole UNet and the whole LD-ZNet."
    )
    parser.add_argument("--model", type=file_name, help="mini, a checkpoint or a diffusers folder (default: mini)")
    parser.add_argument("--sizes", choices=SIZES,
                        help="in place of a model: networks of Stable Diffusion 1.x's sizes with random weights")
    parser.add_argument("--decoders", nargs="+", type=file_name, metavar="FILE",
                        help="decoder files (default: those of mini, or random weights, which take as long)")
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated (default: all)")
    parser.add_argument("--side", type=int, metavar="PIXELS",
                        help="of the pictures, a multiple of 64 (default: the model's own)")
    parser.add_argument("--phrases", nargs="+", type=between(1, 1000), default=[1, 8], metavar="N",
                        help="numbers of phrases (default: 1 8)")
    parser.add_argument("--batch", nargs="+", type=between(1, 1000), default=[1, 8], metavar="N",
                        help="numbers of pictures (default: 1 8)")
    parser.add_argument("--rounds", type=between(1, 1000), default=5, help="%(default)s; one more warms up")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                        help="what the networks compute in (default: float32)")
    parser.add_argument("--json", action="store_true", help="one JSON object with all rows, in place of a table")


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    from ..backbones.base import require
    from ..backbones.load import load_backbone
    from ..decoders.files import load_decoder
    from ..evaluation import bench

    if args.sizes:
        refuse(args, ("model", "decoders"), "with --sizes")
    if args.side is not None and (args.side < GRID or args.side % GRID):
        raise InputError(f"--side {args.side} is no multiple of {GRID}")
    device = choose_device(args.device)
    check_dtype(device, args.dtype)
    backbone = bench.random_model(device) if args.sizes else load_backbone(args.model or "mini", device, args.dtype)
    require(backbone, "features")
    bundled = not (args.sizes or args.decoders) and args.model in (None, "mini")
    files = [("mini", kind) for kind in bench.DECODED] if bundled else [(file,) for file in args.decoders or ()]
    given = [load_decoder(*file) for file in files]
    own = {decoder.kind: decoder for decoder in given}
    plan = bench.Plan(
        tuple(args.method or METHODS), args.side or round(backbone.native_area**0.5), tuple(args.batch),
        tuple(args.phrases), args.rounds,
    )  # fmt: skip
    with precision(device, args.dtype):
        decoders = bench.decoders_for(backbone, own, plan.side)
        found = list(bench.ways(backbone, decoders, plan))
        bench.measure(found, plan.rounds, backbone, progress("ways"))
        roof = bench.roof(backbone.device)
    rows, about = list(bench.rows(found, roof)), bench.machine(backbone.device, args.dtype, roof)
    about |= {"side": plan.side, "rounds": plan.rounds, "decoders, megabytes in 16 bits": bench.weights(decoders)}
    if args.json:
        yield {"machine": about, "rows": rows}
        return
    yield ", ".join(f"{name} {value}" for name, value in about.items() if not isinstance(value, dict))
    yield from bench.table(rows)
