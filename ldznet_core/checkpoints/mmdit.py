"""A miniature transformer in one file: SD 3's MM-DiT under SD 3's names, without the VAE and the text encoder, which it
shares with the miniature of a UNet.

Sizes are read from the tensors. The metadata says which VAE and text encoder the transformer was trained beside.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, first_line
from ..imaging.files import replacing
from ..networks.autoencoder import Autoencoder
from ..networks.mmdit import MMDiT, MMDiTConfig
from ..networks.text import ClipText
from .ldm import LatentDiffusion, fill, numbered
from .tokenizer import ClipTokenizer

PREFIX = "model.diffusion_model."


@dataclass
class LatentFlow:
    """A transformer with the VAE, text encoder and tokenizer that it was trained beside, and what its file says of
    itself (`about`). Contexts are padded to `tokens`; longer texts are as long as they are."""

    transformer: MMDiT
    vae: Autoencoder
    text: ClipText
    tokenizer: ClipTokenizer
    about: dict

    @property
    def tokens(self) -> int:
        return self.about["tokens"]


def mmdit_config(shapes: Mapping[str, tuple]) -> MMDiTConfig:
    """Sizes of the transformer whose tensors (SD 3's names, no prefix) have these shapes. Raises KeyError where they
    are arranged otherwise."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    return MMDiTConfig(
        width=width,
        blocks=numbered(shapes, r"joint_blocks\.(\d+)\."),
        channels=channels,
        patch=patch,
        context_dim=shapes["context_embedder.weight"][1],
        table=round(shapes["pos_embed"][1] ** 0.5),
        qk_norm="joint_blocks.0.x_block.attn.ln_q.weight" in shapes,
    )


@torch.no_grad()
def signature(model: LatentDiffusion | LatentFlow) -> str:
    """16 hexadecimal digits of the weights of VAE and text encoder, rounded to 16 bits as files hold them."""
    digest = hashlib.sha256()
    for network in (model.vae, model.text):
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_about(path: Path) -> dict:
    """What the file of a miniature transformer says of itself. Raises InputError for a file that is none."""
    try:
        with safe_open(path, "pt") as f:
            about = json.loads((f.metadata() or {}).get("ldznet", "{}"))
    except Exception as error:
        raise InputError(f"{path} is damaged or no safetensors file ({first_line(error)}): get it again") from None
    if "shares" not in about:
        raise InputError(
            f"{path} is a checkpoint of Stable Diffusion 3, whose text encoders are not read here: use it in ComfyUI"
        )
    return about


def read(path: Path, shared: LatentDiffusion, dtype: torch.dtype = torch.float32) -> LatentFlow:
    """Read a transformer on the CPU, to work with VAE and text encoder of `shared`. Raises InputError where it is
    none, or was trained beside others."""
    about = read_about(path)
    if about["shares"] != signature(shared):
        raise InputError(
            f"{path} was trained beside another VAE and text encoder: keep the mini.safetensors and the tokenizer of "
            "its build beside it"
        )
    with safe_open(path, "pt") as f:
        tensors = {name.removeprefix(PREFIX): f.get_tensor(name) for name in f.keys() if name.startswith(PREFIX)}
    try:
        config = mmdit_config({name: tuple(value.shape) for name, value in tensors.items()})
        with torch.device("meta"):
            transformer = MMDiT(config)
        fill(transformer, tensors, dtype)
    except (KeyError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(f"{path} is no whole transformer of the family of SD 3: {first_line(error)}") from None
    return LatentFlow(transformer, shared.vae, shared.text, shared.tokenizer, about)


def write(transformer: Mapping[str, Tensor], about: dict, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the weights of a transformer, replacing `path` only once it is whole. `about` holds "shares", `signature`
    of what it was trained beside, and "tokens"."""
    tensors = {PREFIX + name: value.to(dtype).contiguous() for name, value in transformer.items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {"ldznet": json.dumps(about), "format": "pt"})
