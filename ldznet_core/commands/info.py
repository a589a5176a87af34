"""`ldznet info`: what a decoder file or a model checkpoint says of itself. Reads a file's head, not its weights."""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from ..errors import InputError
from ..ldm import PREFIXES, unet_config
from ..networks.decoder import DecoderConfig
from ..weights import BUNDLED, KINDS, read_about


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a decoder or model file; 'mini' is what is bundled")
    parser.add_argument("--json", action="store_true", help="a line of JSON instead of lines to read")


def run(args: argparse.Namespace) -> Iterator[dict | str]:
    if args.file == "mini":
        decoders = (BUNDLED / f"{kind}.safetensors" for kind in KINDS)
        files = [BUNDLED / "mini.safetensors", *(file for file in decoders if file.is_file())]
    else:
        files = [Path(args.file)]
    for number, file in enumerate(files):
        facts = describe(file)
        yield facts if args.json else "\n" * (number > 0) + lay_out(facts)


def describe(file: Path) -> dict:
    """The facts of a file. Raises InputError where there is none, or it is neither decoder nor model."""
    if not file.is_file():
        raise InputError(f"no file {file}: give a decoder file, a model checkpoint or 'mini'")
    shapes = model_shapes(file)
    return {"file": str(file), **(describe_model(file, shapes) if shapes["unet"] else describe_decoder(file))}


def model_shapes(file: Path) -> dict[str, dict[str, tuple]]:
    """Shapes of the tensors of a checkpoint's three parts; empty where the file is anything else."""
    try:
        with safe_open(file, "pt") as f:
            shapes = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except Exception:  # reading it as a decoder says what is wrong
        shapes = {}
    return {
        part: {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        for part, prefix in PREFIXES.items()
    }


def describe_model(file: Path, shapes: dict[str, dict[str, tuple]]) -> dict:
    with safe_open(file, "pt") as f:
        metadata = f.metadata() or {}
    try:
        about = json.loads(metadata.get("ldznet", "{}"))
        unet = unet_config(shapes["unet"], about)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{file} is no Stable Diffusion checkpoint that is supported: {error}") from None
    parameters = {part: sum(map(math.prod, given.values())) for part, given in shapes.items()}
    return {
        "kind": "model",
        "family": about.get("family", "unnamed"),
        "parameters": sum(parameters.values()),
        "bytes": file.stat().st_size,
        "parts": parameters,
        "taps": list(unet.taps),
        "context width": unet.context_dim,
        "about": about,
    }


def describe_decoder(file: Path) -> dict:
    about = read_about(file)
    try:
        info, config = about["info"], DecoderConfig.from_dict(about["config"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is no whole decoder file: its metadata lacks {error}") from None
    return {
        "kind": about["kind"],
        "family": info.get("family"),
        "prediction": info.get("prediction"),
        "parameters": about["parameters"],
        "bytes": file.stat().st_size,
        "taps": about.get("taps", []),
        "context width": config.unet.context_dim,
        "timesteps": info.get("timesteps"),
        "pixels": info.get("pixels"),
        "templates": info.get("templates"),
        "training": info.get("training"),
        "metrics": info.get("metrics"),
        "licence": info.get("licence"),
    }


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
