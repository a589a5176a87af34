"""Step `denoiser`: the miniature's UNet and text encoder, trained together on latents of composed scenes.

v-prediction with a soft min-SNR weight: at this size it learns to follow words many times sooner than eps.
"""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.ldm import LatentDiffusion, write
from ..checkpoints.tokenizer import learn
from ..imaging.images import to_network
from ..networks.autoencoder import Autoencoder
from ..networks.precision import half_precision
from ..networks.schedule import Schedule
from ..networks.text import ClipText, TextConfig
from ..networks.unet import UNet, UNetConfig
from ..training.checkpoint import read_shards
from ..training.hardware import compile_on_gpu
from ..training.loop import Moment, Plan, train
from .bank import Recipe, bank
from .grow import grown
from .sprites import load_pack, nouns
from .vae import CONFIG as VAE_CONFIG
from .words import vocabulary_words

log = logging.getLogger(__name__)
NUM_HEADS = 4
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 96, 3, 4
UNET_CONFIG = UNetConfig(
    model_channels=64, channel_mult=(1, 1, 2, 2), num_heads=NUM_HEADS, context_dim=TEXT_WIDTH
)
CAPTION_DROPOUT = 0.1


class Conditioned(nn.Module):
    """UNet and text encoder as one network, so that one optimiser and one average hold both."""

    def __init__(self, unet: UNet, text: ClipText):
        super().__init__()
        self.unet, self.text = unet, text

    @classmethod
    def fresh(cls, vocabulary: int) -> "Conditioned":
        return cls(UNet(UNET_CONFIG), ClipText(TextConfig(vocabulary, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS)))

    @classmethod
    def grown(cls, small: LatentDiffusion) -> "Conditioned":
        """For pictures of twice the size. The text encoder stays as it is: what words mean is known, and a transformer
        that was trained beside it can go on with it."""
        return cls(grown(small.unet).requires_grad_(True), small.text.requires_grad_(False))


def trained_vae(folder: Path, device: str) -> Autoencoder:
    vae = Autoencoder(VAE_CONFIG)
    tensors, _ = read_shards(folder)
    vae.load_state_dict({k[2:]: v.float() for k, v in tensors.items() if k.startswith("a.")})
    return vae.to(device).eval().requires_grad_(False)


@torch.no_grad()
def encode_all(vae: Autoencoder, images: np.ndarray, device: str, batch: int = 50) -> Tensor:
    """uint8 [N, S, S, 3] -> unscaled latents [N, 4, S/8, S/8] on the device."""
    with half_precision(device):
        parts = [vae.encode(to_network(images[i : i + batch], device)) for i in range(0, len(images), batch)]
    return torch.cat(parts).float()


def weight(schedule: Schedule, timesteps: Tensor) -> Tensor:
    """Soft min-SNR weight for v-prediction (Hang et al., 2023): min(snr + 1, 5) / (snr + 1)."""
    a = schedule.alphas_cumprod.to(timesteps.device)[timesteps]
    return (1 / (1 - a)).clamp(max=5) * (1 - a)  # snr + 1 = 1 / (1 - a)


def spread_timesteps(batch: int) -> Tensor:
    """Timesteps [B], each uniform over 0..999 and together evenly spread: less noise in the gradient (Kingma et
    al., 2021)."""
    return (((torch.rand(()) + torch.arange(batch) / batch) % 1) * 1000).long()


def train_denoiser(
    pack: Path, vae: Autoencoder, folder: Path, plan: Plan, recipe: Recipe, scenes: int, batch: int,
    small: LatentDiffusion | None = None, seed: int = 0,
) -> None:
    """Train a UNet and its text encoder on latents of `vae`, with checkpoints in `folder`; or, grown, the UNet of
    `small`, which was trained on the same nouns and latents. Latents are brought to unit variance, by folding it into
    `vae`, where nothing was trained on them before."""
    torch.manual_seed(seed)
    device = plan.device
    vocabulary = nouns(load_pack(pack), recipe.concepts)
    tokenizer = learn(vocabulary_words(vocabulary))
    tokenizer.save(folder / "tokenizer")
    vae.to(device)
    latents, captions = [], []
    for part in range(0, scenes, 4000):  # in parts: the pictures of a large bank would not fit in memory
        drawn = bank(pack, recipe, min(4000, scenes - part), seed=1000 + part)
        latents.append(encode_all(vae, np.stack([s.image for s in drawn]), device))
        captions += [s.caption for s in drawn]
        log.info("encoded %d of %d scenes", len(captions), scenes)
    z = torch.cat(latents) * vae.SCALE  # [N, 4, h, w]
    if not small:
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        vae.normalise(mean / vae.SCALE, std / vae.SCALE)
        z = (z - mean[:, None, None]) / std[:, None, None]
    tokens = torch.tensor([tokenizer.encode(c) for c in captions], device=device)
    empty = torch.tensor(tokenizer.encode(""), device=device)

    network = (Conditioned.grown(small) if small else Conditioned.fresh(len(tokenizer.vocabulary))).to(device)
    compile_on_gpu(device, network.unet)
    schedule = Schedule.stable_diffusion("v")

    def loss(moment: Moment) -> Tensor:
        picked = torch.randint(len(z), (batch,), device=device)
        clean, words = z[picked], tokens[picked]
        words = torch.where(torch.rand(batch, 1, device=device) < CAPTION_DROPOUT, empty, words)
        timesteps = spread_timesteps(batch).to(device)
        noise = torch.randn_like(clean)
        z_t = schedule.add_noise(clean, noise, timesteps)
        with half_precision(device):
            predicted = network.unet(z_t, timesteps, network.text(words))
        error = (predicted.float() - schedule.velocity(clean, noise, timesteps)).square().mean((1, 2, 3))
        return (weight(schedule, timesteps) * error).mean()

    def report(averaged: dict[str, Tensor], trained: dict) -> None:
        network.load_state_dict({k: v.float() for k, v in averaged.items()})
        about = {
            "name": "mini", "family": "sd1", "prediction": "v", "num_heads": NUM_HEADS, "text_heads": TEXT_HEADS,
            "size": recipe.size, "nouns": list(vocabulary), "unet": asdict(network.unet.config),
            "trained": {**trained, "samples": trained["steps"] * batch, "device": device},
        }
        if small:
            about["grown from"] = {"size": small.about["size"], **small.about["trained"]}
        model = LatentDiffusion(vae, network.text, network.unet, tokenizer, schedule, about)
        write(model, folder / "mini.safetensors")
        log.info("wrote %s", folder / "mini.safetensors")

    train(network, loss, plan, folder, report)
