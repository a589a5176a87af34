"""`ldznet distil`: a light decoder from a checkpoint alone, without data or labels."""

import argparse
import logging
import math
import signal
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .shared import MAX_SEED, between, choose_device, file_name
from .train import check_out, family_of

log = logging.getLogger(__name__)
DESCRIPTION = (
    "The model draws single things on plain grounds. They are cut out by their difference from the ground, composed "
    "into scenes, and these are redrawn lightly, so that masks are known without any segmentation network. A light "
    "decoder is trained on them, on scenes of the same things in random looks, and on natural pictures with masks of "
    "the model's own attention, and then once more on those pixels where both agree. Some nouns and drawings are held "
    "out to choose the best weights. In a folder of the decoder's name lie all drawings, sheets of them, and the "
    "training runs; 'ldznet train --data folder:NAME/drawn' can read them. Prints one line of JSON."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    about = "mini, a .safetensors checkpoint of SD 1.x, or a diffusers folder of SD 1.x, 2.x or SDXL (default: mini)"
    parser.add_argument("--model", type=file_name, default="mini", metavar="MODEL", help=about)
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors", help="the decoder's file")
    about = "what to draw, a noun a line (default: 150 common things, or those that the model names)"
    parser.add_argument("--nouns", type=Path, metavar="FILE", help=about)
    about = "scenes to compose; half as many drawings to cut out, and a quarter of natural pictures (%(default)s)"
    parser.add_argument("--pictures", type=between(8, 10**6), default=4000, metavar="N", help=about)
    about = "denoising steps of a drawing (%(default)s)"
    parser.add_argument("--drawing-steps", type=between(2, 1000), default=20, metavar="N", help=about)
    about = "length of the training, of computing on a CPU (default: 15 passes over the drawings)"
    parser.add_argument("--minutes", type=between(0.01, math.inf, float), help=about)
    parser.add_argument("--seed", type=between(0, MAX_SEED), default=0, help="seed of all drawings and of training")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped or killed")
    parser.add_argument("--overwrite", action="store_true", help="replace the file and its folder where they exist")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")


def run(args: argparse.Namespace) -> Iterator[dict]:
    args.print_config = False
    check_out(args)
    folder = args.out.with_suffix("") / "drawn"
    if folder.exists() and not (args.resume or args.overwrite):
        raise InputError(f"{folder} exists: name another file, go on with --resume, or add --overwrite")

    from ..backbones.base import require
    from ..backbones.load import load_backbone
    from ..evaluation.metrics import PhraseMetrics
    from ..training.distil import Distillation
    from ..training.drawn import Drawn
    from ..training.vocabulary import nouns_of, words_of

    device = choose_device(args.device)
    backbone = load_backbone(args.model, device)
    require(backbone, "features")
    drawn = Drawn(
        backbone, folder, nouns_of(backbone, args.nouns), words_of(backbone), args.pictures,
        args.drawing_steps, args.seed,
    )  # fmt: skip
    work = Distillation(drawn, family_of(backbone), args.out, PhraseMetrics, args.minutes, device, args.resume)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the checkpoint is saved
    try:
        yield work.run()
    except KeyboardInterrupt:
        log.warning("stopped; what is in %s is whole: go on with --resume", work.folder)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
