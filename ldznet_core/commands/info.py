"""`ldznet info`: what a decoder file or a model (checkpoint or diffusers folder) says of itself. Reads the heads of
files, not their weights."""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open

from ..checkpoints import diffusers_folder
from ..checkpoints.bundled import BUNDLED
from ..checkpoints.ldm import unet_config
from ..checkpoints.mmdit import mmdit_config
from ..checkpoints.mmdit import read_about as read_transformer
from ..decoders.files import AUTHORS, conditions_of, is_own, read_about
from ..decoders.paper_checkpoint import read_official
from ..decoders.registry import DECODERS
from ..errors import InputError
from ..networks.schedule import Flow
from ..networks.unet import SD2, SDXL, UNetConfig
from .shared import file_name

SIZES = {"sd1": UNetConfig(), "sd2": SD2, "sdxl": SDXL}
FAMILIES = {
    "sd1": "SD 1.x checkpoints",
    "sd2": "SD 2.x checkpoints",
    "sdxl": "SDXL checkpoints",
    "miniature": "the bundled miniature",
    "unnamed": "models of its own sizes",
}
QKV = "joint_blocks.0.x_block.attn.qkv.weight"  # a tensor of every transformer of SD 3's kind
# Where a checkpoint keeps its parts; the text encoders of SD 2.x and SDXL have names of their own.
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text": ("cond_stage_model.", "conditioner.embedders."),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "a decoder, a model checkpoint or diffusers folder; 'mini' is what is bundled"
    parser.add_argument("file", type=file_name, metavar="FILE", help=about)
    parser.add_argument("--json", action="store_true", help="a line of JSON instead of lines to read")


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    if args.file == "mini-dit":
        files = [BUNDLED / "mini-dit.safetensors"]
    elif args.file == "mini":
        decoders = (BUNDLED / f"{kind}.safetensors" for kind in DECODERS)
        files = [BUNDLED / "mini.safetensors", *(file for file in decoders if file.is_file())]
    else:
        files = [Path(args.file)]
    for number, file in enumerate(files):
        facts = describe(file)
        yield facts if args.json else "\n" * (number > 0) + lay_out(facts)


def describe(file: Path) -> dict:
    """The facts of a file or diffusers folder. Raises InputError where there is none, or it is neither decoder nor
    model."""
    if file.is_dir():
        return {"file": str(file), **describe_folder(file)}
    if not file.is_file():
        raise InputError(f"no file {file}: give a decoder file, a model checkpoint, a diffusers folder or 'mini'")
    shapes = model_shapes(file)
    if QKV in shapes["unet"]:
        return {"file": str(file), **describe_transformer(file, shapes["unet"])}
    return {"file": str(file), **(describe_model(file, shapes) if shapes["unet"] else describe_decoder(file))}


def model_shapes(file: Path) -> dict[str, dict[str, tuple]]:
    """Shapes of the tensors of a checkpoint's three parts; empty where the file is anything else."""
    try:
        with safe_open(file, "pt") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except Exception:  # `describe_decoder` then says what is wrong
        shapes = {}
    return {
        part: {name.removeprefix(prefixes[0]): shape for name, shape in shapes.items() if name.startswith(prefixes)}
        for part, prefixes in PREFIXES.items()
    }


def describe_model(file: Path, shapes: dict[str, dict[str, tuple]]) -> dict:
    with safe_open(file, "pt") as f:
        metadata = f.metadata() or {}
    try:
        about = json.loads(metadata.get("ldznet", "{}"))
        unet = unet_config(shapes["unet"], about)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{file} is no Stable Diffusion checkpoint that is supported: {error}") from None
    parameters = {part: sum(map(math.prod, tensors.values())) for part, tensors in shapes.items()}
    return model_facts(unet, about.get("name"), about.get("prediction"), parameters, file.stat().st_size, about)


def describe_transformer(file: Path, shapes: dict[str, tuple]) -> dict:
    """The facts of a miniature transformer. Raises InputError for a checkpoint of Stable Diffusion 3."""
    about, config = read_transformer(file), mmdit_config(shapes)
    return {
        "kind": "model",
        "family": "miniature transformer",
        "prediction": Flow.prediction,
        "parameters": sum(map(math.prod, shapes.values())),
        "bytes": file.stat().st_size,
        "blocks": config.blocks,
        "context width": config.context_dim,
        "fits": "no decoders: the methods attention and noise",
        "about": about,
    }


def describe_folder(folder: Path) -> dict:
    names, unet = diffusers_folder.parts(folder), diffusers_folder.read_unet_config(folder)
    parameters = {name: diffusers_folder.parameters(folder, name) for name in names}
    size = sum(file.stat().st_size for name in names for file in diffusers_folder.weights(folder, name)[0])
    about = {"pipeline": diffusers_folder.read_json(folder / "model_index.json").get("_class_name")}
    return model_facts(unet, None, diffusers_folder.prediction(folder), parameters, size, about)


def model_facts(
    unet: UNetConfig, name: str | None, prediction: str | None, parameters: dict[str, int], size: int, about: dict
) -> dict:
    family = name_family(unet, name)
    return {
        "kind": "model",
        "family": family,
        "prediction": prediction or "not said",
        "parameters": sum(parameters.values()),
        "bytes": size,
        "parts": parameters,
        "taps": list(unet.taps),
        "context width": unet.context_dim,
        "fits": f"decoders for {call(family)} (context width {unet.context_dim})",
        "about": about,
    }


def describe_decoder(file: Path) -> dict:
    about = read_about(file) if is_own(file) else about_authors(file)
    try:
        info, unet = about["info"], UNetConfig.from_dict(about["config"]["unet"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is no whole decoder file: its metadata lacks {error}") from None
    family, taps = name_family(unet, info.get("family")), about.get("taps", [])
    # A decoder that reads no features shares nothing with the UNet, so that any prediction will do.
    which = f", prediction {info.get('prediction')}" if taps else ""
    return {
        "kind": about["kind"],
        "family": family,
        "prediction": info.get("prediction"),
        "parameters": about["parameters"],
        "bytes": file.stat().st_size,
        "taps": taps,
        "context width": unet.context_dim,
        "fits": f"{call(family)} (context width {unet.context_dim}{which})",
        "timesteps": info.get("timesteps"),
        "conditions": conditions_of(info),
        "pixels": info.get("pixels"),
        "templates": info.get("templates"),
        "training": info.get("training"),
        "metrics": info.get("metrics"),
        "licence": info.get("licence"),
    }


def about_authors(file: Path) -> dict:
    """What `read_about` would give for the authors' checkpoint, which says nothing of itself: it is read whole."""
    config, tensors = read_official(file)
    return {
        "kind": config.kind,
        "config": config.as_dict(),
        "info": asdict(AUTHORS),
        "taps": list(config.unet.taps),
        "parameters": sum(value.numel() for value in tensors.values()),
    }


def call(family: str) -> str:
    return FAMILIES.get(family, f"models of family {family}")


def name_family(unet: UNetConfig, conditioning: str | None) -> str:
    """The family that a UNet's sizes are those of; else what the file calls itself, the bundled one `miniature`."""
    def signature(sizes: UNetConfig) -> tuple:
        return sizes.model_channels, sizes.channel_mult, sizes.context_dim

    for name, known in SIZES.items():
        if signature(unet) == signature(known):
            return name
    return "miniature" if conditioning == "mini" else conditioning or "unnamed"


def lay_out(facts: dict) -> str:
    """Facts as aligned lines; what has parts gets a line a part."""
    rows: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            rows += [(f"{name}: {part}", one) for part, one in flatten(value)]
        else:
            rows.append((name, say(value)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def flatten(values: dict, before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{before}{name} ")
        else:
            yield before + name, say(value)


def say(value) -> str:
    if isinstance(value, list):
        return ", ".join(map(say, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 9999:
        return f"{value:,}"
    return "none" if value in (None, {}) else str(value)
