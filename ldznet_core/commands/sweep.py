"""`ldznet sweep`: the paper's figure of blocks and timesteps, for any UNet and any data."""

import argparse
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..backbones.base import TorchBackbone, require
from ..backbones.fingerprint import fingerprint
from ..backbones.load import load_backbone
from ..data.base import Dataset
from ..data.spec import KINDS, load_data
from ..errors import InputError
from .shared import between, check_folder, choose_device, file_name, folder_name

if TYPE_CHECKING:
    from ..evaluation.sweep import Settings

MANY = 10**7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = ", ".join(KINDS)
    parser.add_argument(
        "--data", type=file_name, metavar="SPEC", help=f"pictures with masks, KIND:FOLDER; kinds: {kinds}"
    )
    parser.add_argument(
        "--pack",
        type=folder_name,
        metavar="FILE",
        help="the miniature's world in place of --data, from 'ldznet mini build pack'",
    )
    parser.add_argument(
        "--model",
        type=file_name,
        default="mini",
        metavar="MODEL",
        help="a .safetensors checkpoint or a diffusers folder, with a UNet (default: mini, the bundled one)",
    )
    parser.add_argument(
        "--out",
        type=folder_name,
        required=True,
        metavar="FOLDER",
        help="where the figure, the numbers and finished cells go",
    )
    parser.add_argument(
        "--timesteps",
        type=timesteps,
        default=timesteps("100..1000"),
        metavar="T,T,...",
        help="such as 300,400, or 100..1000, which is every hundred (the default)",
    )
    parser.add_argument("--blocks", metavar="NAME,...", help="these blocks only, such as middle_block,output_blocks.3")
    parser.add_argument(
        "--condition",
        choices=("phrase", "empty"),
        default="phrase",
        help="the text that feature maps are made under (default: the phrase, as in the paper)",
    )
    for option, default, what in (
        ("--seeds", 3, "trainings of every decoder, whose mean and spread are told"),
        ("--train", 500, "examples that the decoders are trained on"),
        ("--val", 200, "examples that they are scored on"),
        ("--steps", 200, "training steps of every decoder"),
    ):
        parser.add_argument(option, type=between(1, MANY), default=default, help=f"{what} (%(default)s)")
    parser.add_argument(
        "--size", type=between(64, 4096), help="side of the pictures, a multiple of 64 (default: the model's)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in --out")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")


def timesteps(text: str) -> tuple[int, ...]:
    """An argparse type: timesteps one by one, or as a range of every hundred."""
    found: list[int] = []
    try:
        for part in text.split(","):
            first, dots, last = part.partition("..")
            found += range(int(first), int(last) + 1, 100) if dots else [int(first)]
    except ValueError:
        found = []
    if not found or not all(1 <= t <= 1000 for t in found):
        raise argparse.ArgumentTypeError(f"{text!r} names no timesteps of 1 to 1000: write 300,400 or 100..1000")
    return tuple(sorted(set(found)))


def run(args: argparse.Namespace) -> Iterator[dict]:
    from ..evaluation import sweep  # needs scipy, an extra

    logging.getLogger("ldznet_core").setLevel(logging.INFO)
    if (args.data is None) == (args.pack is None):
        raise InputError("give --data SPEC or, for the miniature's world, --pack FILE")
    check_folder(args.out)
    backbone = load_backbone(args.model, choose_device(args.device))
    require(backbone, "features")
    settings = settings_of(args, backbone)
    counts = (settings.train, settings.validation)
    sets = zip(datasets(args, backbone, counts), counts, strict=True)
    chosen = [sweep.choose(data, count, settings.size, seed) for seed, (data, count) in enumerate(sets)]
    sweep.prepare(args.out, settings, args.resume)
    cells = {}
    for seed, timestep, cell in sweep.sweep(backbone, chosen, settings, args.out):
        cells[seed, timestep] = cell
        best = max(settings.blocks, key=lambda block: cell[block]["ap"])
        yield {"timestep": timestep, "seed": seed, "best": best, "ap": cell[best]["ap"]}
    yield sweep.report(settings, cells, backbone.unet_config, args.out)


def settings_of(args: argparse.Namespace, backbone: TorchBackbone) -> "Settings":
    from ..evaluation.sweep import Settings

    size = args.size or round(backbone.native_area**0.5)
    if size % 64:
        raise InputError(f"--size {size} is not a multiple of 64: try {size // 64 * 64}")
    return Settings(
        model=f"{backbone.name} {fingerprint(backbone)}",
        data=args.data or args.pack.name,
        blocks=blocks(args.blocks, backbone.unet_config.transformers),
        timesteps=args.timesteps,
        seeds=args.seeds,
        train=args.train,
        validation=args.val,
        steps=args.steps,
        size=size,
        condition=args.condition,
    )


def blocks(names: str | None, there: tuple[str, ...]) -> tuple[str, ...]:
    wanted = [name.strip() for name in names.split(",")] if names else there
    for name in wanted:
        if name not in there:
            raise InputError(f"the UNet has no spatial transformer in {name!r}: choose among {', '.join(there)}")
    return tuple(block for block in there if block in wanted)


def datasets(args: argparse.Namespace, backbone: TorchBackbone, counts: tuple[int, int]) -> tuple[Dataset, Dataset]:
    """The training and the validation data."""
    if args.data:
        return load_data(args.data, "train"), load_data(args.data, "val")
    from ..mini.evaluation import sweep_sets

    about = getattr(getattr(backbone, "model", None), "about", {})
    if "nouns" not in about:
        raise InputError(f"{backbone.name} does not know the miniature's world: give --data SPEC in place of --pack")
    return sweep_sets(about, args.pack, counts)
