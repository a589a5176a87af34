"""A model in diffusers' layout, a folder a part: what its words and file heads say. diffusers is not needed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..errors import InputError
from ..networks.unet import UNet, UNetConfig

WORKS = "LD-ZNet reads Stable Diffusion 1.x, 2.x and SDXL"
SCHEDULER = "scheduler/scheduler_config.json"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}  # diffusers' names and ours


def read_json(path: Path) -> dict:
    """Raises InputError where there is no such file or it holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        reason = "it holds no JSON object"
    except FileNotFoundError:
        reason = "there is no such file"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise InputError(f"{path} cannot be read ({reason}): get the folder again") from None


def parts(folder: Path) -> tuple[str, ...]:
    """The parts of the model that a mask needs. Raises InputError where the folder is no Stable Diffusion."""
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is no diffusers folder: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    pipeline = index.get("_class_name", "pipeline of no name")
    if "UNet2DConditionModel" not in (index.get("unet") or ()):
        raise InputError(f"{folder} is a {pipeline}, which has no such UNet: {WORKS}")
    texts = [name for name in ("text_encoder", "text_encoder_2") if name in index]
    for name in texts or ["text_encoder"]:  # entries of parts that were left out are pairs of null
        if "CLIPText" not in str(index.get(name)):
            raise InputError(f"{folder} is a {pipeline} without the {name} of a whole model: {WORKS}")
    return ("unet", "vae", *texts)


def read_unet_config(folder: Path) -> UNetConfig:
    """The UNet's sizes. Raises InputError for one that is arranged otherwise than those of Stable Diffusion."""
    config = read_json(folder / "unet" / "config.json")
    try:
        sizes = unet_config(config)
        with torch.device("meta"):
            expected = sum(p.numel() for p in UNet(sizes).parameters())
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        raise InputError(f"the UNet of {folder} is not described as any that can be read ({error}): {WORKS}") from None
    # Pruned and other relatives share all that their description says with the real ones, but not their size.
    if (found := parameters(folder, "unet")) != expected:
        raise InputError(f"the UNet of {folder} has {found:,} parameters instead of {expected:,}: {WORKS}")
    if sizes.in_channels != sizes.out_channels:
        raise InputError(
            f"the UNet of {folder} reads {sizes.in_channels} channels, as those for inpainting, upscaling or editing "
            "do: use the model that it was made from"
        )
    return sizes


def unet_config(config: Mapping) -> UNetConfig:
    """Sizes of the UNet of which this is diffusers' description. Raises KeyError, TypeError or ValueError."""
    widths, linear = config["block_out_channels"], config.get("use_linear_projection", False)

    def each(value) -> list[int]:
        return [value] * len(widths) if isinstance(value, int) else list(value)

    kinds = enumerate(config["down_block_types"])
    levels = tuple(level for level, kind in kinds if kind == "CrossAttnDownBlock2D")
    heads = each(config.get("attention_head_dim", 8))  # called dim, but it is their number
    depths = each(config.get("transformer_layers_per_block", 1))
    numbers, sizes = {heads[i] for i in levels}, {widths[i] // heads[i] for i in levels}
    if len(sizes if linear else numbers) != 1:
        raise ValueError(f"heads {heads} in blocks of {list(widths)} channels")
    even = len({depths[i] for i in levels}) == 1
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        model_channels=widths[0],
        channel_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=config["layers_per_block"],
        attention_levels=levels,
        num_heads=8 if linear else numbers.pop(),
        head_channels=sizes.pop() if linear else 0,
        context_dim=config["cross_attention_dim"],
        transformer_depth=depths[levels[-1]] if even else tuple(d * (i in levels) for i, d in enumerate(depths)),
        use_linear=linear,
        vector_channels=config.get("projection_class_embeddings_input_dim") or 0,
    )


def prediction(folder: Path) -> str:
    """What the UNet predicts: "eps" or "v"."""
    said = read_json(folder / SCHEDULER).get("prediction_type", "epsilon")
    if said not in PREDICTIONS:
        raise InputError(f"the model in {folder} predicts {said!r}: {WORKS}, which predict {' or '.join(PREDICTIONS)}")
    return PREDICTIONS[said]


def weights(folder: Path, part: str) -> tuple[list[Path], str | None]:
    """The files of a part's weights and their variant, such as fp16 where only that is there."""
    for variant in (None, "fp16", "bf16", "non_ema"):
        dot = f".{variant}" if variant else ""
        for stem in ("diffusion_pytorch_model", "model"):
            files = sorted(
                {*(folder / part).glob(f"{stem}{dot}.safetensors"), *(folder / part).glob(f"{stem}{dot}-*.safetensors")}
            )
            if files:
                return files, variant
    raise InputError(
        f"{folder / part} has no .safetensors weights, and pickled ones are not read: "
        "get the model in safetensors, or save it again with diffusers"
    )


def parameters(folder: Path, part: str) -> int:
    """How many numbers a part's files hold. Reads their heads only."""
    total = 0
    for file in weights(folder, part)[0]:
        try:
            with safe_open(file, "pt") as f:
                total += sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())
        except Exception as error:
            raise InputError(f"{file} is damaged or no safetensors file ({error}): get it again") from None
    return total
