"""The authors' checkpoint (`LDZNet_txt2mask.ckpt`): what is in it, found by name and shape, and nothing believed.

Knows their names: the decoder's raw weights `model.diffusion_model.*`, its moving average `model_ema.*` (names without
dots, preferred as in their demo), and whatever else their class saves, which is left out. Sizes are read from shapes.
"""

import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoints.ldm import unet_config
from ..errors import InputError
from ..networks.unet import UNetConfig
from .unet import DecoderConfig, MaskDecoder

log = logging.getLogger(__name__)

RAW, EMA = "model.diffusion_model.", "model_ema."
PREFIXES = (RAW, EMA)
EMA_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}
# What else their class may save: Stable Diffusion, its VAE and text encoder, the noise schedule.
OTHERS = ("first_stage_model.", "cond_stage_model.", "sd_features_stage_model.")
SCHEDULE = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
}  # fmt: skip
STRANGERS = 16  # as many unknown names are passed over; a file with more is something else
TEMPLATES = tuple(
    f"{words} {{}}."
    for words in (
        "a photo of a", "a photograph of a", "an image of a", "a cropped photo of a", "a good photo of a",
        "a photo of one", "a bad photo of a", "a photo of the",
    )
) + ("{}.",)  # fmt: skip
HEADS = 8  # everywhere in SD 1.x, and nothing that a tensor's shape tells


def is_archive(path: Path) -> bool:
    """Whether a file's first bytes are those of a PyTorch archive."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_official(path: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """The decoder in a checkpoint of the authors' layout: its sizes, and its tensors under our names.

    Accepts the moving average alone, both, or the whole set; `.ckpt` archives are read with `weights_only=True`,
    and safetensors files that hold the same names as well. Raises InputError, in one line, for anything else;
    nothing in the file is executed, and no more memory is taken than it has bytes.
    """
    tensors = _open(path)
    strangers = [n for n in tensors if not (n.startswith((RAW, EMA, *OTHERS)) or n in SCHEDULE)]
    if len(strangers) > STRANGERS:
        raise InputError(
            f"{path} holds {len(strangers)} tensors that no LD-ZNet checkpoint has, such as {strangers[0][:60]!r}"
        )
    raw = {name.removeprefix(RAW): value for name, value in tensors.items() if name.startswith(RAW)}
    ema = {n.removeprefix(EMA): v for n, v in tensors.items() if n.startswith(EMA) and n not in EMA_COUNTERS}
    weights = _averaged(path, ema, raw) if ema else raw
    if not weights:
        raise InputError(f"{path} holds no decoder: neither model_ema.* nor model.diffusion_model.* is in it")
    _check(path, weights)
    config = _config(path, weights)
    _fit(path, weights, config)
    log.info("%s: %d tensors, %s weights", path, len(weights), "averaged" if ema else "raw")
    return config, weights


def _open(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a file, mapped rather than read."""
    try:
        if not is_archive(path):
            with safe_open(path, "pt") as f:
                return {name: f.get_tensor(name) for name in f.keys()}
        with zipfile.ZipFile(path) as archive:
            # PyTorch stores, it never packs: what would grow on reading was not written by it.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{path} is packed as no PyTorch checkpoint is: it is not read")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as fault:
        reason = " ".join(str(fault).split()) or type(fault).__name__
        if "weights_only" in reason or "Unsupported" in reason:
            reason = "it holds Python objects other than tensors, which are not loaded"
        raise InputError(f"{path} cannot be read as a checkpoint ({reason[:160]}): get it again") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise InputError(f"{path} is no checkpoint: it holds a {type(content).__name__} instead of named tensors")
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _averaged(path: Path, ema: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Averaged weights under their real names. Theirs have lost their dots, which no parsing brings back: a map from
    the names that a network of this kind has does."""
    for names in [list(raw)] if raw else _known_names():
        dotless = {("diffusion_model." + name).replace(".", ""): name for name in names}
        missing = dotless.keys() - ema.keys()
        if ema.keys() <= dotless.keys() and all("skip_connection" in dotless[name] for name in missing):
            return {dotless[name]: value for name, value in ema.items()}
    beside = f" beside the {len(raw)} raw ones" if raw else ""
    raise InputError(f"{path} has {len(ema)} averaged weights{beside} that are not those of an LD-ZNet decoder")


def _known_names() -> Iterator[tuple[str, ...]]:
    """Parameter names of decoders of every arrangement of blocks, that of SD 1.x first."""
    yield _arranged(4, 2, 3)
    for levels in (2, 3, 4, 5):
        for blocks in (1, 2, 3):
            for attention in range(1, levels + 1):
                yield _arranged(levels, blocks, attention)


@cache
def _arranged(levels: int, blocks: int, attention: int) -> tuple[str, ...]:
    """Names, a skip_connection in every block that may have one: that depends on widths, which names do not tell."""
    unet = UNetConfig(
        model_channels=32, channel_mult=tuple(range(2, 2 + levels)), num_res_blocks=blocks,
        attention_levels=tuple(range(attention)), context_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        return tuple(name for name, _ in MaskDecoder(DecoderConfig("ldznet", unet, grid=2**levels)).named_parameters())


def _check(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises InputError for tensors that claim more than the file holds, or that are no numbers."""
    size = 0
    for name, value in weights.items():
        size += value.numel() * value.element_size()
        small = value.untyped_storage().nbytes() < value.numel() * value.element_size()
        if not value.is_floating_point() or not value.is_contiguous() or small or size > path.stat().st_size:
            raise InputError(f"{path} is damaged: {name} of shape {list(value.shape)} is not what it claims")
        if not value.isfinite().all():
            raise InputError(f"{path} is damaged: {name} has values that are not finite (NaN or infinity)")


def _config(path: Path, weights: Mapping[str, Tensor]) -> DecoderConfig:
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    try:
        unet = unet_config(shapes, {"num_heads": HEADS})
        head, level = shapes["out.2.weight"][0], max(unet.attention_levels)
        side = math.isqrt(shapes[f"{unet.taps[0]}.1.attentionpool2D.positional_embedding"][1] - 1)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, TypeError):
        raise InputError(f"{path} holds no LD-ZNet decoder: parts of its network are missing") from None
    blocks = {name.partition(".1.attentionpool2D.")[0] for name in shapes if ".attentionpool2D." in name}
    if blocks != set(unet.taps):
        raise InputError(f"{path} reads features at {', '.join(sorted(blocks))}, not at {', '.join(unet.taps)}")
    return DecoderConfig("ldznet", replace(unet, out_channels=unet.in_channels), side * 2**level, head)


def _fit(path: Path, weights: Mapping[str, Tensor], config: DecoderConfig) -> None:
    """Raises InputError unless the weights are exactly those of the network that `config` describes."""
    try:
        with torch.device("meta"):
            expected = {name: tuple(p.shape) for name, p in MaskDecoder(config).named_parameters()}
    except (RuntimeError, ValueError, TypeError, OverflowError, AssertionError) as fault:
        raise InputError(f"{path} describes a network that cannot be built ({fault})") from None
    for name in [*expected, *weights]:
        found = tuple(weights[name].shape) if name in weights else None
        if found != expected.get(name):
            raise InputError(f"{path}: {name} has shape {found}, where the decoder has {expected.get(name)}")
