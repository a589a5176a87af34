"""The settings of a training run in four blocks: read from TOML and flags, checked, and written again as TOML.

A value of None is chosen by the decoder's kind and the model (`recipes.py`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line

# What a value may be, and how errors call it.
KINDS = {
    "whole": "a whole number",
    "number": "a number",
    "switch": "true or false",
    "text": "a text",
    "texts": "a list of texts",
    "range": "a list of two whole numbers",
    "shares": "a table of shares, such as {phrase = 0.7, empty = 0.3}",
}


def option(kind: str, about: str, default: Any = None, least: float | None = None) -> Any:
    """A field of a block: what kind of value it takes, its help text and, for numbers, the smallest one allowed."""
    return field(default=default, metadata={"kind": kind, "about": about, "least": least})


@dataclass(frozen=True)
class DecoderBlock:
    """What is trained, and under which texts and noise the backbone's features are read."""

    kind: str = option("text", "kind of decoder: light, ldznet, znet or rgbnet", "light")
    head_channels: int | None = option("whole", "channels of the upsampling head of UNet decoders", least=1)
    templates: tuple[str, ...] | None = option("texts", "sentences that phrases are put in; {} is the phrase")
    conditions: dict[str, float] | None = option(
        "shares", "texts that features are read under (phrase, caption, empty), with the share of examples each gets"
    )
    timesteps: tuple[int, int] | None = option("range", "timesteps that features are noised to, the last excluded")


@dataclass(frozen=True)
class DataBlock:
    """Which examples, and how they are made alike."""

    data: str = option("text", "the data: KIND:FOLDER, or several with =WEIGHT after each, separated by commas", "")
    size: int | None = option("whole", "side of the training pictures in pixels, a multiple of 64", least=64)
    crop: bool | None = option("switch", "random square crop that shows the object; else the whole picture is squeezed")
    absent: float | None = option("number", "share of phrases from other pictures, whose mask is empty", least=0)
    phrases: int | None = option("whole", "phrases of a picture that share one pass of the backbone", least=1)
    cache: str | None = option(
        "text", "keep latents or features on disk (none, latents, features); they are of whole pictures, without a crop"
    )
    cache_folder: str = option("text", "where the cache lies; by default in the run's folder", "")


@dataclass(frozen=True)
class OptimiserBlock:
    """How weights follow the loss."""

    batch: int | None = option("whole", "examples in a step, over all processes", least=1)
    at_once: int | None = option("whole", "examples in one pass of a process; the rest of a batch follows", least=1)
    rate: float | None = option("number", "learning rate of AdamW", least=0)
    muon: float | None = option("number", "learning rate of Muon for hidden matrices; 0 leaves them to AdamW", least=0)
    weight_decay: float = option("number", "weight decay", 0.01, least=0)
    ema: float | None = option("number", "decay of the moving average of the weights, which is what is kept", least=0)
    dice: float | None = option("number", "weight of the soft Dice loss beside the cross-entropy", least=0)
    checkpointing: bool = option("switch", "compute activations twice: less memory, a third more time", False)
    precision: str = option("text", "auto, float32 or bfloat16: what networks compute in", "auto")


@dataclass(frozen=True)
class ScheduleBlock:
    """How long, and what happens on the way."""

    steps: int | None = option("whole", "length in steps; by default 15 passes over the data, 500 at least", least=1)
    minutes: float | None = option("number", "length in minutes, of computing on a CPU, in place of steps", least=0)
    warm_up: int | None = option("whole", "steps in which the rate rises", least=1)
    validate: int | None = option("whole", "steps between two validations; 0 for none", least=0)
    validation: int = option("whole", "examples of the validation split that are looked at", 100, least=1)
    patience: int = option("whole", "validations without gain before the run ends; 0 never ends it", 0, least=0)
    seed: int = option("whole", "seed of weights, examples, crops, templates and noise", 0, least=0)


@dataclass(frozen=True)
class Config:
    decoder: DecoderBlock = DecoderBlock()
    data: DataBlock = DataBlock()
    optimiser: OptimiserBlock = OptimiserBlock()
    schedule: ScheduleBlock = ScheduleBlock()

    def as_dict(self) -> dict[str, dict]:
        return asdict(self)

    def updated(self, values: Mapping[str, Mapping[str, Any]], source: str) -> "Config":
        """With `values`, {block: {key: value}}. Raises InputError, naming `source`, for an unknown name or a value of
        another kind."""
        blocks = {}
        for block, content in values.items():
            if block not in BLOCKS:
                raise InputError(f"{source}: there is no block [{block}]{nearest(block, BLOCKS)}")
            if not isinstance(content, Mapping):
                raise InputError(f"{source}: {block} is a block: write [{block}], and its keys below")
            known = {f.name: f for f in fields(BLOCKS[block])}
            for key, value in content.items():
                if key not in known:
                    raise InputError(f"{source}: there is no key {key!r} in [{block}]{nearest(key, known)}")
                blocks.setdefault(block, {})[key] = checked(known[key], value, f"{source}: {key}")
        return replace(self, **{block: replace(getattr(self, block), **content) for block, content in blocks.items()})


BLOCKS: dict[str, type] = {
    "decoder": DecoderBlock,
    "data": DataBlock,
    "optimiser": OptimiserBlock,
    "schedule": ScheduleBlock,
}


def options() -> Iterator[tuple[str, Field]]:
    """(block, field) of every setting, in order."""
    for block, kind in BLOCKS.items():
        yield from ((block, one) for one in fields(kind))


def nearest(name: str, known: Mapping) -> str:
    """": did you mean ...?", or the known names where none is near."""
    match = get_close_matches(name, known, 1)
    return f": did you mean {match[0]}?" if match else f": choose among {', '.join(known)}"


def checked(one: Field, value: Any, name: str) -> Any:
    """A value as its field keeps it. Raises InputError where it is of another kind or too small."""
    kind, least = one.metadata["kind"], one.metadata["least"]
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    right = {
        "whole": number and isinstance(value, int),
        "number": number,
        "switch": isinstance(value, bool),
        "text": isinstance(value, str),
        "texts": isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(v, str) for v in value),
        "range": isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value),
        "shares": isinstance(value, Mapping) and len(value) > 0
        and all(type(v) in (int, float) and v >= 0 for v in value.values()) and sum(value.values()) > 0,
    }[kind]  # fmt: skip
    if not right:
        raise InputError(f"{name} must be {KINDS[kind]}, not {value!r}")
    if number and least is not None and value < least:
        raise InputError(f"{name} must be at least {least:g}, not {value!r}")
    return tuple(value) if kind in ("texts", "range") else value


def parsed(one: Field, text: str) -> Any:
    """The value that a flag gives as text, unchecked: lists are separated by |, ranges and shares by commas."""
    kind = one.metadata["kind"]
    try:
        if kind == "whole":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "texts":
            return [part.strip() for part in text.split("|")]
        if kind == "range":
            return [int(part) for part in text.split(",")]
        if kind == "shares":
            pairs = [part.partition("=") for part in text.split(",")]
            return {name.strip(): float(share or 1) for name, _, share in pairs}
    except ValueError:
        raise InputError(f"--{one.name.replace('_', '-')}: {text!r} is not {KINDS[kind]}") from None
    return text


def read_toml(path: Path) -> dict:
    """The tables of a TOML file. Raises InputError where there is none or it is damaged."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}): give a TOML file") from None


def to_toml(config: Config) -> str:
    """The whole configuration as TOML, with what each key means; keys that nothing was chosen for are comments."""
    lines = []
    for block, kind in BLOCKS.items():
        lines += [f"[{block}]"]
        for one in fields(kind):
            value = getattr(getattr(config, block), one.name)
            line = f"# {one.name} =" if value is None else f"{one.name} = {toml_value(value)}"
            lines.append(f"{line}  # {one.metadata['about']}")
        lines.append("")
    return "\n".join(lines)


def toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {toml_value(share)}" for name, share in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)
