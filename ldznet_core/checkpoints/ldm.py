"""A latent diffusion model in one file: reads and writes LDM-layout safetensors checkpoints.

Sizes are read from the tensors, never assumed; only what shapes cannot tell (number of heads, prediction type)
comes from the metadata, with Stable Diffusion's values where there is none.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError
from ..imaging.files import replacing
from ..networks.autoencoder import Autoencoder, AutoencoderConfig
from ..networks.schedule import Schedule
from ..networks.text import ClipText, TextConfig
from ..networks.unet import UNet, UNetConfig
from .tokenizer import ClipTokenizer

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.transformer."}


@dataclass
class LatentDiffusion:
    """VAE, text encoder and denoising UNet of one model, with what the file says of itself (`about`)."""

    vae: Autoencoder
    text: ClipText
    unet: UNet
    tokenizer: ClipTokenizer
    schedule: Schedule
    about: dict


def numbered(names, pattern: str) -> int:
    """How many different numbers stand where `pattern` has its group."""
    return len({m[1] for name in names if (m := re.match(pattern, name))})


def unet_config(shapes: Mapping[str, tuple], about: Mapping) -> UNetConfig:
    """Sizes of the UNet whose tensors (LDM names, no prefix) have these shapes.

    Raises KeyError or ValueError where they are arranged otherwise than in SD 1.x, 2.x and SDXL.
    """
    channels = shapes["input_blocks.0.0.weight"][0]
    mults, blocks, depths, level = [], 0, {}, 0
    for i in range(1, numbered(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            level += 1
            continue
        blocks += level == 0
        if len(mults) <= level:
            mults.append(shapes[f"input_blocks.{i}.0.out_layers.3.weight"][0] // channels)
        if f"input_blocks.{i}.1.norm.weight" in shapes:
            depths[level] = numbered(shapes, rf"input_blocks\.{i}\.1\.transformer_blocks\.(\d+)\.")
    context = shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1]
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    even = len(set(depths.values())) == 1
    config = UNetConfig(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        model_channels=channels,
        channel_mult=tuple(mults),
        num_res_blocks=blocks,
        attention_levels=tuple(depths),
        num_heads=8 if linear else int(about.get("num_heads", 8)),
        head_channels=64 if linear else 0,  # SD 2.x and SDXL have linear projections and heads of 64 channels
        context_dim=context,
        transformer_depth=depths[max(depths)] if even else tuple(depths.get(i, 0) for i in range(len(mults))),
        use_linear=linear,
        vector_channels=shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
    )
    check_arrangement(config, shapes)
    return config


def check_arrangement(config: UNetConfig, shapes: Mapping[str, tuple]) -> None:
    """Raises ValueError where a UNet of these sizes has a tensor that is not there or of another shape, or fewer
    transformer blocks: pruned and other relatives of SD share names with it, and would be read wrongly."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in UNet(config).state_dict().items()}
    strange = [name for name, shape in expected.items() if shapes.get(name) != shape]
    strange += [name for name in shapes if name.endswith(".norm1.weight") and name not in expected]
    if strange:
        raise ValueError(f"its UNet is arranged otherwise than those of SD 1.x, 2.x and SDXL (see {strange[0]})")


def vae_config(shapes: Mapping[str, tuple]) -> AutoencoderConfig:
    channels = shapes["encoder.conv_in.weight"][0]
    levels = numbered(shapes, r"decoder\.up\.(\d+)\.")
    widths = [shapes[f"decoder.up.{i}.block.0.conv2.weight"][0] for i in range(levels)]
    return AutoencoderConfig(
        channels=channels,
        channel_mult=tuple(w // channels for w in widths),
        num_res_blocks=numbered(shapes, r"decoder\.up\.0\.block\.(\d+)\.") - 1,
        latent_channels=shapes["post_quant_conv.weight"][0],
    )


def text_config(shapes: Mapping[str, tuple], about: Mapping) -> TextConfig:
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    return TextConfig(
        vocabulary=vocabulary,
        width=width,
        layers=numbered(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        heads=int(about.get("text_heads", width // 64)),
        positions=shapes["text_model.embeddings.position_embedding.weight"][0],
    )


def read(path: Path, tokenizer: ClipTokenizer, dtype: torch.dtype = torch.float32) -> LatentDiffusion:
    """Read a single-file checkpoint on the CPU, in any floating-point type. Raises InputError where it is not one."""
    if not path.is_file():
        raise InputError(f"no model file {path}: give 'mini' or the path of a .safetensors checkpoint")
    try:
        with safe_open(path, "pt") as f:
            about = json.loads((f.metadata() or {}).get("ldznet", "{}"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}
    except Exception as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error}): get it again") from None
    parts = {
        part: {k[len(prefix) :]: tensors.pop(k) for k in list(tensors) if k.startswith(prefix)}
        for part, prefix in PREFIXES.items()
    }
    try:
        shapes = {part: {k: tuple(v.shape) for k, v in given.items()} for part, given in parts.items()}
        sizes = unet_config(shapes["unet"], about)
        if not shapes["text"]:
            raise ValueError("its text encoder is not that of SD 1.x")
        with torch.device("meta"):  # not filled with random numbers only to be overwritten
            networks = {
                "unet": UNet(sizes),
                "vae": Autoencoder(vae_config(shapes["vae"])),
                "text": ClipText(text_config(shapes["text"], about)),
            }
        for part, network in networks.items():
            fill(network, parts[part], dtype)
    except (KeyError, RuntimeError, ZeroDivisionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is no Stable Diffusion checkpoint that is supported: {reason}") from None
    schedule = Schedule.stable_diffusion(about.get("prediction", "eps"))
    return LatentDiffusion(**networks, tokenizer=tokenizer, schedule=schedule, about=about)


def fill(network: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Load weights strictly by name; names that the network does not have are left out.

    Weights that are of that type in the file stay mapped: what a mask never needs is never read into memory.
    """
    own = network.state_dict()
    network.load_state_dict({k: tensors.pop(k).to(dtype) for k in own if k in tensors}, assign=True)
    network.eval().requires_grad_(False)


def write(model: LatentDiffusion, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the model as one LDM-layout file, replacing `path` only once it is whole."""
    tensors = {
        prefix + name: value.to(dtype).contiguous()
        for part, prefix in PREFIXES.items()
        for name, value in getattr(model, part).state_dict().items()
    }
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {"ldznet": json.dumps(model.about), "format": "pt"})
