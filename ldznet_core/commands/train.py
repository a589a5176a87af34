"""`ldznet train`: a decoder for a checkpoint, from public data or masks of your own."""

import argparse
import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..training.config import Config, options, parsed, read_toml, to_toml
from .shared import check_files, check_folder, choose_device, file_name
from .workers import this_worker

log = logging.getLogger(__name__)
DESCRIPTION = (
    "Trains a mask decoder for a model and writes it as one file, which goes into ComfyUI's models/ldznet or after "
    "'ldznet segment --decoder'. Beside it, in a folder of the same name, lie the checkpoint, the configuration, the "
    "losses, and the validation's scores and sheets of masks. Settings come from --config, then from flags; what is "
    "left open is chosen by kind and model: the paper's recipe for its kinds. With several GPUs or machines "
    "start it as 'accelerate launch -m ldznet_core train ...'. Prints one line of JSON."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    about = "mini, a .safetensors checkpoint of SD 1.x, or a diffusers folder of SD 1.x, 2.x or SDXL (default: mini)"
    parser.add_argument("--model", type=file_name, default="mini", metavar="MODEL", help=about)
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors", help="the decoder's file")
    parser.add_argument("--config", type=Path, metavar="RUN.toml", help="settings, as --print-config writes them")
    parser.add_argument("--print-config", action="store_true", help="print all settings of this run as TOML, and end")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder of --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the file and the run where they exist")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: cuda if there, else cpu)")
    groups = {}
    for block, one in options():
        group = groups.get(block) or groups.setdefault(block, parser.add_argument_group(f"[{block}]"))
        flag, about = f"--{one.name.replace('_', '-')}", one.metadata["about"]
        if one.metadata["kind"] == "switch":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=about)
        else:
            group.add_argument(flag, metavar=one.metadata["kind"].upper(), help=about)


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    config = configured(args)
    if args.print_config and args.out is None:
        args.out = Path("decoder.safetensors")
    check_out(args)

    from ..backbones.base import require
    from ..backbones.load import load_backbone
    from ..evaluation.metrics import PhraseMetrics
    from ..training.processes import join
    from ..training.run import Run, prepared

    processes, device = join(this_worker().count, choose_device(args.device))
    backbone = load_backbone(args.model, device)
    require(backbone, "features")
    config, dataset = prepared(config, backbone)
    if args.print_config:
        if processes.main:
            yield to_toml(config)
        return
    training = Run(
        config, backbone, family_of(backbone), dataset, args.out, PhraseMetrics, device, processes, args.resume
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the checkpoint is saved
    try:
        result = training.train()
    except KeyboardInterrupt:
        if processes.main:
            log.warning("stopped; the checkpoint in %s is whole: go on with --resume", training.folder)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if processes.main:
        yield result


def configured(args: argparse.Namespace) -> Config:
    """The settings of file and flags; those of the run itself where it is resumed without a file."""
    config, file = Config(), args.config
    if file is None and args.resume and args.out:
        kept = args.out.with_suffix("") / "config.toml"
        file = kept if kept.is_file() else None
    if file:
        config = config.updated(read_toml(file), str(file))
    for block, one in options():
        value = getattr(args, one.name)
        if value is not None:
            value = parsed(one, value) if isinstance(value, str) else value
            config = config.updated({block: {one.name: value}}, "command line")
            if args.resume and one.name in ("steps", "minutes"):  # the other one is that of the run before
                other = {"steps": "minutes", "minutes": "steps"}[one.name]
                config = forget(config, other) if getattr(args, other) is None else config
    return config


def forget(config: Config, name: str) -> Config:
    """With a key of the schedule left open."""
    return replace(config, schedule=replace(config.schedule, **{name: None}))


def check_out(args: argparse.Namespace) -> None:
    """Raises InputError where the decoder could not be written, or would replace another."""
    if args.out is None:
        raise InputError("where to? Name the decoder's file with --out FILE.safetensors")
    if args.out.suffix != ".safetensors":
        raise InputError(f"--out {args.out}: give the decoder a name that ends in .safetensors")
    check_folder(args.out.parent)
    check_files([args.out])
    if args.resume or args.overwrite or args.print_config:
        return
    for there in (args.out, args.out.with_suffix("") / "about.json"):
        if there.exists():
            raise InputError(f"{there} exists: name another file, go on with --resume, or add --overwrite")


def family_of(backbone) -> str:
    """The family that a decoder's file names: sd1, sd2, sdxl, or the model's own name."""
    from .info import name_family

    return backbone.name if backbone.name == "mini" else name_family(backbone.unet_config, backbone.name)
