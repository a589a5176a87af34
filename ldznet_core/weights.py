"""Decoder files: safetensors whose metadata says what the decoder is, so that a wrong one is refused by name."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .errors import InputError, first_line
from .files import replacing
from .networks.decoder import KINDS, DecoderConfig, MaskDecoder
from .official import PREFIXES, TEMPLATES, is_archive, read_official

FORMAT = 1
BUNDLED = Path(__file__).parent / "mini" / "weights"


@dataclass(frozen=True)
class DecoderInfo:
    """What a decoder file says of itself. `timesteps` is the half-open range its features were trained at;
    `pixels` the image area it was trained on, `templates` the sentences that phrases were put in."""

    family: str
    prediction: str
    timesteps: tuple[int, int] = (300, 500)
    pixels: int = 384 * 384
    templates: tuple[str, ...] = ("a photo of a {}.",)
    training: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    licence: str = "Apache-2.0"


AUTHORS = DecoderInfo(
    family="sd1",
    prediction="eps",
    templates=TEMPLATES,
    training={"data": "PhraseCut", "by": "the authors of LD-ZNet", "host": "sd-v1-4-full-ema.ckpt, raw weights"},
)
"""What the authors' checkpoint would say of itself (paper section 4; sizes are read from the file)."""


def write_decoder(decoder: MaskDecoder, info: DecoderInfo, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a decoder file, replacing `path` only once it is whole."""
    metadata = {
        "format_version": str(FORMAT),
        "kind": decoder.kind,
        "taps": json.dumps(decoder.taps),
        "config": json.dumps(decoder.decoder_config.as_dict()),
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
    if about.get("kind") not in KINDS or "config" not in about:
        raise InputError(f"{path} is no LD-ZNet decoder file: its metadata names kind {about.get('kind')!r}")
    if (version := about.get("format_version", FORMAT)) > FORMAT:
        raise InputError(f"{path} has format {version}, newer than this program's {FORMAT}: update it")
    return {**about, "parameters": parameters}


def find_decoder(name: str | Path, kind: str | None = None) -> Path:
    """The file of a decoder: 'mini' is the bundled one (of `kind`, ldznet if not given), else a path."""
    if str(name) == "mini":
        return BUNDLED / f"{kind or 'ldznet'}.safetensors"
    return Path(name)


def load_decoder(
    name: str | Path = "mini", kind: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> MaskDecoder:
    """Read a decoder in evaluation mode; `decoder.info` holds what the file says of it.

    `name` is 'mini' for a bundled one, or a file: our own, or the authors' checkpoint as it was published.
    Raises InputError where there is no such file, it is damaged, or it is of another kind than asked for.
    """
    path = find_decoder(name, kind)
    if not path.is_file():
        if str(name) == "mini" and kind == "rgbnet":
            raise InputError("no rgbnet is bundled, it is the paper's baseline: train one with 'ldznet mini build'")
        what_to_do = "install this program again" if str(name) == "mini" else "give a .safetensors decoder file"
        raise InputError(f"no decoder file {path}: {what_to_do}")
    if is_own(path):
        config, info, weights = read_own(path)
    else:
        config, weights = read_official(path)
        info = AUTHORS
    if kind and config.kind != kind:
        raise InputError(f"{path} holds a {config.kind} decoder, not {kind}")
    try:
        with torch.device("meta"):  # not filled with random numbers only to be overwritten
            decoder = MaskDecoder(config)
        # One by one, so that two precisions are never whole; in the file's own it stays mapped, and is read as used.
        weights = {name: weights.pop(name).to(dtype) for name in list(weights)}
        decoder.load_state_dict(weights, assign=True)
    except (RuntimeError, TypeError, KeyError, ValueError, AssertionError) as error:
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


def read_own(path: Path) -> tuple[DecoderConfig, DecoderInfo, dict[str, torch.Tensor]]:
    """Sizes, description and weights of a file that `write_decoder` made."""
    about = read_about(path)
    try:
        info = DecoderInfo(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["info"].items()})
        with safe_open(path, "pt") as f:
            return DecoderConfig.from_dict(about["config"]), info, {k: f.get_tensor(k) for k in f.keys()}
    except (RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{path} does not hold the decoder that its metadata describes: {reason}") from None
