"""The miniature transformer in ComfyUI's own classes of Stable Diffusion 3.

ComfyUI's VAE gives 8 pixels to a position of a latent. The transformer's latents have twice as many positions as those
of the VAE that it shares with the other miniature, so pictures are halved on the way in and doubled on the way out.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from comfy import model_management
from comfy.latent_formats import SD3 as LatentFormat
from comfy.model_detection import detect_unet_config
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.supported_models import SD3
from torch import Tensor, nn

from ..checkpoints.bundled import BUNDLED
from ..checkpoints.ldm import read
from ..checkpoints.mmdit import LatentFlow
from ..checkpoints.mmdit import read as read_transformer
from ..checkpoints.tokenizer import ClipTokenizer
from ..errors import InputError
from ..networks.mmdit import narrow, widen
from .comfy_mini import load_clip, load_vae

PIXELS = 16  # of a picture to a position of the shared VAE's latent


def load_mini_dit(folder: Path = BUNDLED) -> tuple[ModelPatcher, CLIP, VAE]:
    """MODEL, CLIP and VAE of the miniature transformer in `folder`, in float32. Raises InputError where it is not
    there."""
    file = folder / "mini-dit.safetensors"
    if not file.is_file():
        raise InputError(f"there is no miniature transformer at {file}: install this pack again, or use unet")
    shared = read(folder / "mini.safetensors", ClipTokenizer.from_folder(folder / "tokenizer"))
    flow = read_transformer(file, shared)
    vae = load_vae(shared)
    vae.first_stage_model = WideVAE(vae.first_stage_model, shared.vae.SCALE)
    vae.latent_channels = LatentFormat.latent_channels
    parts = load_model(flow), load_clip(shared, folder / "tokenizer", flow.tokens), vae
    for number, part in enumerate(parts):
        # With this ComfyUI makes copies for other devices, such as several GPUs at once.
        getattr(part, "patcher", part).cached_patcher_init = (load_patcher, (folder, number))
    return parts


def load_patcher(folder: Path, number: int, disable_dynamic: bool = True) -> ModelPatcher:
    """The patcher of one part of `load_mini_dit`, read anew from the file."""
    part = load_mini_dit(folder)[number]
    return getattr(part, "patcher", part)


def load_model(flow: LatentFlow) -> ModelPatcher:
    class Miniature(SD3):
        sampling_settings = {"shift": 1.0}
        native_side = 2 * flow.about["size"]

    weights = flow.transformer.state_dict()
    config = Miniature({**detect_unet_config(weights, ""), "num_blocks": flow.transformer.config.blocks})
    config.set_inference_dtype(torch.float32, None)
    offload = model_management.unet_offload_device()
    base = config.get_model({}, "", device=offload)
    base.diffusion_model.load_state_dict(weights)
    base.eval().requires_grad_(False)
    return ModelPatcher(base, load_device=model_management.get_torch_device(), offload_device=offload)


class WideVAE(nn.Module):
    """A VAE of 4-channel latents that encodes pictures of twice the size into latents of 16 channels: those that
    Stable Diffusion 3's latent format turns into widened ones of unit variance."""

    def __init__(self, inner: nn.Module, scale: float):
        super().__init__()
        self.inner, self.scale, self.format = inner, scale, LatentFormat()

    def encode(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1, sides multiples of 8 -> [B, 16, H/8, W/8]."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % PIXELS, 0, -height % PIXELS), mode="replicate")
        z = self.inner.encode(F.avg_pool2d(x, 2)) * self.scale
        return self.format.process_out(widen(z))[..., : height // 8, : width // 8]

    def decode(self, latent: Tensor, **options) -> Tensor:
        """[B, 16, h, w] -> pixels [B, 3, 8h, 8w]."""
        height, width = latent.shape[-2:]
        latent = F.pad(latent, (0, width % 2, 0, height % 2), mode="replicate")
        small = self.inner.decode(narrow(self.format.process_in(latent)) / self.scale, **options)
        pixels = F.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)
        return pixels[..., : height * 8, : width * 8]
