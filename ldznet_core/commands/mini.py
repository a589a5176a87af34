"""`ldznet mini build`: rebuild the bundled miniature, step by step, on any machine."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from ..mini import STEPS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "step", nargs="?", default="all", choices=("all", *STEPS), help="what to build (default: all, in this order)"
    )
    parser.add_argument("--folder", type=Path, default=Path("mini-build"), help="where the build lives")
    parser.add_argument("--concepts", type=int, help="how many nouns to learn (default: 32, on a GPU 100)")
    parser.add_argument("--minutes", type=float, help="length of the step (of each decoder) in minutes of training")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="MINUTES",
                        help="end this run after so many minutes; go on with --resume")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run stopped")
    parser.add_argument("--seeds", type=int, default=3, help="how many decoders of each kind (default 3)")
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda where there is one)")


def run(args: argparse.Namespace) -> Iterator[str]:
    from dataclasses import replace

    import torch

    from ..mini import steps
    from ..training.loop import Paused

    logging.getLogger("ldznet_core").setLevel(logging.INFO)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = steps.SETTINGS["cuda" if device.startswith("cuda") else "cpu"]
    if args.concepts:
        settings = replace(settings, concepts=args.concepts)
    this = steps.Build(args.folder, settings, device, args.minutes, args.stop_after, args.resume, args.seeds)
    for step in STEPS if args.step == "all" else (args.step,):
        try:
            getattr(steps, step)(this)
        except Paused as pause:
            yield str(pause)
            return
        yield f"{step}: done"
