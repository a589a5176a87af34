"""Step `dit`: a miniature diffusion transformer (SD 3's MM-DiT) on the autoencoder and text encoder of the miniature.

Rectified flow (Esser et al., 2024): z_t = (1 - sigma) z + sigma noise, the network predicts noise - z, and sigma is
drawn logit-normal. It learns from pictures and captions alone: no mask takes part. Most of what it learns of words
comes from small pictures, which cost a third; then it goes on with pictures of full size.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints import mmdit
from ..checkpoints.ldm import LatentDiffusion
from ..imaging.files import replacing
from ..networks.mmdit import MMDiT, MMDiTConfig, widened
from ..networks.precision import half_precision
from ..training.checkpoint import read_shards
from ..training.hardware import compile_on_gpu
from ..training.loop import Moment, Plan, train
from .bank import Recipe, bank
from .denoiser import CAPTION_DROPOUT, encode_all, spread_timesteps

log = logging.getLogger(__name__)
CONFIG = MMDiTConfig(width=256, blocks=4, channels=4, patch=1, context_dim=96)
COUNTS = (0.5, 0.4, 0.1)  # single things teach shapes, two things teach which word is which
SMALL_SHARE = 0.35  # of the training is on pictures of half the size
TOKENS = 20  # of a context, padded to; longer texts are as long as they are
PART = 4000  # scenes composed and encoded at a time: pictures of all would not fit in memory


@dataclass(frozen=True, eq=False)
class Latents:
    """Scenes as the transformer learns from them: latents [N, 4, h, w], and for each its caption's row."""

    z: Tensor
    captions: list[str]
    rows: Tensor  # int64 [N], into `captions`


def latents(pack: Path, folder: Path, model: LatentDiffusion, recipe: Recipe, scenes: int, device: str) -> Latents:
    """Scenes encoded once and kept in `folder`."""
    path = folder / f"latents-{recipe.size}.safetensors"
    if not path.is_file():
        parts, captions = [], []
        for start in range(0, scenes, PART):
            drawn = bank(pack, recipe, min(PART, scenes - start), seed=2000 + start)
            parts.append(encode_all(model.vae, np.stack([s.image for s in drawn]), device).half().cpu())
            captions += [s.caption for s in drawn]
            log.info("encoded %d of %d scenes of %d px", len(captions), scenes, recipe.size)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            save_file({"z": torch.cat(parts).contiguous()}, unfinished, {"captions": json.dumps(captions)})
    with safe_open(path, "pt") as file:
        captions, z = json.loads(file.metadata()["captions"]), file.get_tensor("z")
    distinct = list(dict.fromkeys(captions))
    row = {caption: i for i, caption in enumerate(distinct)}
    rows = torch.tensor([row[caption] for caption in captions], device=device)
    return Latents(z.to(device).float() * model.vae.SCALE, distinct, rows)


@torch.no_grad()
def contexts(model: LatentDiffusion, texts: list[str], device: str) -> Tensor:
    """[N, TOKENS, D]: texts are encoded causally, so that leaving padding out changes no row."""
    tokens = torch.tensor([model.tokenizer.encode(text)[:TOKENS] for text in texts], device=device)
    return torch.cat([model.text.to(device)(part) for part in tokens.split(512)])


def logit_normal(batch: int) -> Tensor:
    """Noise levels sigma [B] in 0..1, evenly spread over the distribution."""
    uniform = (spread_timesteps(batch) + torch.rand(batch)) / 1000
    return torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).sigmoid()


def train_dit(
    pack: Path, model: LatentDiffusion, folder: Path, plan: Plan, recipe: Recipe, scenes: int, batch: int, seed: int = 0
) -> None:
    """Train the transformer beside a frozen miniature, with checkpoints in `folder`; `batch` is that of full-size
    pictures, small ones come twice as many."""
    torch.manual_seed(seed)
    device = plan.device
    model.vae.to(device)
    network = MMDiT(CONFIG).to(device)
    compile_on_gpu(device, network)
    empty = contexts(model, [""], device)
    stage: dict[int, tuple[Latents, Tensor]] = {}

    def data(size: int) -> tuple[Latents, Tensor]:
        if size not in stage:
            stage.clear()
            scenes_of_size = latents(pack, folder, model, replace(recipe, size=size), scenes, device)
            stage[size] = scenes_of_size, contexts(model, scenes_of_size.captions, device)
        return stage[size]

    def loss(moment: Moment) -> Tensor:
        small = moment.progress < SMALL_SHARE
        known, texts = data(recipe.size // 2 if small else recipe.size)
        count = 2 * batch if small else batch
        picked = torch.randint(len(known.z), (count,), device=device)
        clean, words = known.z[picked], texts[known.rows[picked]]
        dropped = torch.rand(count, 1, 1, device=device) < CAPTION_DROPOUT
        words = torch.where(dropped, empty, words)
        sigma = logit_normal(count).to(device)
        noise = torch.randn_like(clean)
        z_t = clean + sigma[:, None, None, None] * (noise - clean)
        with half_precision(device):
            predicted = network(z_t, 1000 * sigma, words)
        return (predicted.float() - (noise - clean)).square().mean()

    train(network, loss, plan, folder)


def export(checkpoint: Path, model: LatentDiffusion, about: dict, path: Path) -> None:
    """Write the averaged weights of a checkpoint, of a finished or an unfinished run, as a file of SD 3's transformer.
    Raises InputError where there is no checkpoint."""
    tensors, trained = read_shards(checkpoint)
    weights = {name[2:]: value for name, value in tensors.items() if name.startswith("w.")}
    weights |= {name[2:]: value for name, value in tensors.items() if name.startswith("a.")}
    about = {
        "name": "mini-dit", "tokens": TOKENS, "shares": mmdit.signature(model), **about,
        "trained": {"steps": trained["steps"], "minutes": round(trained["seconds"] / 60, 1), "loss": trained["loss"]},
    }  # fmt: skip
    mmdit.write(widened(weights), about, path)
    log.info("wrote %s after %.0f minutes", path, trained["seconds"] / 60)
