"""Decoder files: safetensors whose metadata says what the decoder is, so that a wrong one is refused by name."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..checkpoints.bundled import BUNDLED
from ..errors import InputError, first_line
from ..imaging.files import replacing
from .base import CONDITIONS, Decoder, DecoderInfo
from .paper_checkpoint import PREFIXES, TEMPLATES, is_archive, read_official
from .registry import DECODERS

FORMAT = 1


AUTHORS = DecoderInfo(
    family="sd1",
    prediction="eps",
    templates=TEMPLATES,
    training={"data": "PhraseCut", "by": "the authors of LD-ZNet", "host": "sd-v1-4-full-ema.ckpt, raw weights"},
)
"""What the authors' checkpoint would say of itself (paper section 4; sizes are read from the file)."""


def write_decoder(decoder: Decoder, info: DecoderInfo, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a decoder file, replacing `path` only once it is whole."""
    metadata = {
        "format_version": str(FORMAT),
        "kind": decoder.kind,
        "taps": json.dumps(decoder.taps),
        "config": json.dumps(decoder.as_dict()),
        "info": json.dumps(asdict(info)),
    }
    tensors = {k: v.to(dtype).contiguous() for k, v in decoder.state_dict().items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata)


def read_about(path: Path) -> dict:
    """A decoder file's metadata, parsed: format_version, kind, taps, config, info, parameters."""
    try:
        with safe_open(path, "pt") as f:
            raw = f.metadata() or {}
            parameters = sum(torch.Size(f.get_slice(k).get_shape()).numel() for k in f.keys())
        about = {k: json.loads(v) if k in ("taps", "config", "info", "format_version") else v for k, v in raw.items()}
    except Exception as error:
        raise InputError(f"{path} is damaged or no safetensors file ({first_line(error)}): get it again") from None
    if about.get("kind") not in DECODERS or "config" not in about:
        raise InputError(f"{path} is no LD-ZNet decoder file: its metadata names kind {about.get('kind')!r}")
    if (version := about.get("format_version", FORMAT)) > FORMAT:
        raise InputError(f"{path} has format {version}, newer than this program's {FORMAT}: update it")
    return {**about, "parameters": parameters}


def find_decoder(name: str | Path, kind: str | None = None) -> Path:
    """The file of a decoder: 'mini' is the bundled one (of `kind`, by default the first of `DECODERS`), else a path."""
    if str(name) != "mini":
        return Path(name)
    files = [BUNDLED / f"{one}.safetensors" for one in ([kind] if kind else DECODERS)]
    return next((file for file in files if file.is_file()), files[0])


def load_decoder(
    name: str | Path = "mini", kind: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Decoder:
    """Read a decoder in evaluation mode; `decoder.info` holds what the file says of it.

    `name` is 'mini' for a bundled one, or a file: our own, or the authors' checkpoint as it was published.
    Raises InputError where there is no such file, it is damaged, or it is of another kind than asked for.
    """
    path = find_decoder(name, kind)
    if not path.is_file():
        if str(name) == "mini":
            raise InputError(f"no {kind or 'decoder'} is bundled: train one with 'ldznet mini build', or give a file")
        raise InputError(f"no decoder file {path}: give a .safetensors decoder file")
    if is_own(path):
        its_kind, config, info, weights = read_own(path)
    else:
        sizes, weights = read_official(path)
        its_kind, config, info = sizes.kind, sizes.as_dict(), AUTHORS
    if kind and its_kind != kind:
        raise InputError(f"{path} holds a {its_kind} decoder, not {kind}")
    try:
        with torch.device("meta"):  # not filled with random numbers only to be overwritten
            decoder = DECODERS[its_kind].from_dict(config)
        if decoder.kind != its_kind:
            raise ValueError(f"it names kind {its_kind} and describes kind {decoder.kind}")
        # One by one, so that two precisions are never whole; in the file's own it stays mapped, and is read as used.
        weights = {name: weights.pop(name).to(dtype) for name in list(weights)}
        decoder.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, KeyError, ValueError, AssertionError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"{path} does not hold the decoder that its metadata describes: {reason}") from None
    decoder.info = info
    return decoder.to(device).eval().requires_grad_(False)


def is_own(path: Path) -> bool:
    """Whether a file is safetensors with our metadata. Raises InputError where it is damaged or of no known kind."""
    if is_archive(path):
        return False
    try:
        with safe_open(path, "pt") as f:
            names = f.metadata() or {}
            return "kind" in names or not any(name.startswith(PREFIXES) for name in f.keys())
    except Exception as error:
        raise InputError(f"{path} is damaged or no safetensors file ({first_line(error)}): get it again") from None


def read_own(path: Path) -> tuple[str, dict, DecoderInfo, dict[str, torch.Tensor]]:
    """Kind, config, description and weights of a file that `write_decoder` made."""
    about = read_about(path)
    try:
        with safe_open(path, "pt") as f:
            return about["kind"], about["config"], read_info(about["info"]), {k: f.get_tensor(k) for k in f.keys()}
    except (RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"{path} does not hold the decoder that its metadata describes: {reason}") from None


def read_info(values: dict) -> DecoderInfo:
    """A file's description, from its metadata. Raises ValueError, TypeError or AttributeError where that is damaged."""
    values = {**values, "conditions": conditions_of(values)}
    return DecoderInfo(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def conditions_of(info: dict) -> list[str]:
    """The texts that conditioned a decoder's features in training. Older files do not name them: decoders of the
    miniature were trained under all three, others under the phrase, as in the paper."""
    if "conditions" in info:
        return info["conditions"]
    ours = str(info.get("training", {}).get("data", "")).startswith("miniature world")
    return list(CONDITIONS if ours else CONDITIONS[:1])
