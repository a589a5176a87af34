"""Step `vae`: the miniature's autoencoder, trained on scenes of the miniature world.

Plain pixel losses are enough at this size: no adversary and no perceptual network.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.images import to_network
from ..networks.autoencoder import Autoencoder, AutoencoderConfig
from ..networks.precision import half_precision
from ..training.hardware import compile_on_gpu
from ..training.loop import Moment, Plan, train
from .bank import Recipe, bank

log = logging.getLogger(__name__)
CONFIG = AutoencoderConfig(channels=64, channel_mult=(1, 1, 1, 1), num_res_blocks=0)


def reconstruction_loss(drawn: Tensor, image: Tensor) -> Tensor:
    """L1 on pixels, on their differences (edges) and on 4x averages (flat colour)."""
    error = drawn - image
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges + 0.5 * F.avg_pool2d(error, 4).abs().mean()


def train_vae(pack: Path, folder: Path, plan: Plan, recipe: Recipe, scenes: int, batch: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    images = np.stack([s.image for s in bank(pack, recipe, scenes, seed=1)])  # [N, S, S, 3]
    rng = np.random.default_rng(seed)
    vae = Autoencoder(CONFIG).to(plan.device)
    compile_on_gpu(plan.device, vae.encoder, vae.decoder)

    def loss(moment: Moment) -> Tensor:
        # Quarter-size crops first: four times as many, and convolutions do not mind.
        crop, count = (recipe.size // 2, batch * 4) if moment.progress < 0.8 else (recipe.size, batch)
        top, left = rng.integers(0, recipe.size - crop + 1, 2)
        picked = rng.integers(0, len(images), count)
        image = to_network(images[picked, top : top + crop, left : left + crop], plan.device)
        with half_precision(plan.device):
            mean, log_variance = vae.posterior(image)
            drawn = vae.decode(mean + torch.randn_like(mean) * (0.5 * log_variance).exp())
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction_loss(drawn.float(), image) + 1e-4 * kl

    averaged = train(vae, loss, plan, folder, rng=rng)
    vae.load_state_dict(averaged)
    measure(vae.eval(), to_network(np.stack([s.image for s in bank(pack, recipe, 64, seed=2)]), plan.device))


@torch.no_grad()
def measure(vae: Autoencoder, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB on images [B, 3, H, W] in -1..1."""
    drawn = vae.decode(vae.encode(images)).clamp(-1, 1)
    psnr = float(10 * torch.log10(4 / F.mse_loss(drawn, images)))
    log.info("reconstruction: %.2f dB on %d new scenes", psnr, len(images))
    return psnr
