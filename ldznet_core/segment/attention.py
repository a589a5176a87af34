"""Masks from the model's own attention, for any checkpoint: no decoder, one pass of the UNet for any number of phrases.

The backbone is run here. What its attention says of where a phrase is, `attention_maps.py` computes.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.families.unet import plan
from ..backbones.queries import Plan, Queries
from ..backbones.recording import Text
from ..errors import InputError
from .attention_maps import CUT, ROUNDS, evidence, masks_of, peak, phrase_attention, propagate, self_attention
from .base import GRID, BaseSegmenter, MaskPrediction, enlarge
from .sizing import padded

SPREADS = ("auto", *ROUNDS)
NOISE_GRID = 32  # positions along a side of the noise that attention is compared with; larger tells no more
NOISES = 2


class AttentionSegmenter(BaseSegmenter):
    """Soft masks of phrases, and their presence, from the attention of a backbone's UNet.

    `spread` says how far attention runs along the model's self-attention: "objects", "stuff", "none", or "auto", which
    is objects where the self-attention is finer than the cross-attention.
    """

    timestep = 100  # of DiffSegmenter, GoCA and iSeg
    samples = 1
    tells_presence = True
    needs = "queries"

    def __init__(
        self,
        backbone,
        *,
        spread: str = "auto",
        samples: int | None = None,
        progress: Callable[[float], None] | None = None,
    ):
        super().__init__(backbone, samples, progress)
        self.spread = check_spread(spread)

    @torch.inference_mode()
    def predict_passes(
        self,
        z: Tensor,
        phrases: Sequence[str],
        timestep: int,
        seed: int,
        caption: str,
        captured: Queries | None,
        done: float,
    ) -> MaskPrediction:
        size = tuple(z.shape[-2:])
        if captured is None:
            z = padded(z, GRID // 8)
        config, text, empty = self.backbone.unet_config, self.backbone.embed(phrases), self.backbone.embed([""])
        layers = captured.plan if captured else plan(config, *z.shape[-2:])
        seeds = [None] if captured else range(seed, seed + self.samples)
        passes = 1 if captured else 1 + len(z) * len(seeds)
        keys = phrase_keys(self.backbone, layers, text, empty.context[:, :2])

        self.progress(done)
        queries = read_queries(self.backbone, pure_noise(z), empty.expand(NOISES), layers, timestep, 0)
        on_noise = phrase_attention(queries, keys, config)

        conditioning, masks, presence, passed = self.backbone.embed([caption]) if caption else empty, [], [], 1
        for row in range(len(z)):
            total = 0.0  # [1, P, h, w]
            for noise_seed in seeds:
                if captured is None:
                    self.progress(done + (1 - done) * passed / passes)
                    queries = read_queries(
                        self.backbone, z[row : row + 1], conditioning, layers, timestep, noise_seed
                    )
                    passed += 1
                else:
                    queries = captured.row(row).map(lambda tensor: tensor.to(keys[0][0].device))
                total = total + evidence(phrase_attention(queries, keys, config), on_noise, queries) / len(seeds)
            presence.append(peak(total).cpu())
            masks.append(self.spread_out(masks_of(total)[0], queries)[None].cpu())
        self.progress(1.0)
        return enlarge(torch.cat(masks), torch.cat(presence), tuple(z.shape[-2:]), size)

    def spread_out(self, masks: Tensor, queries: Queries) -> Tensor:
        """Masks [P, h, w] spread along the model's self-attention, on its grid."""
        spread = self.spread
        if spread == "auto":
            spread = "objects" if queries.plan.is_finer else "none"
        if not ROUNDS[spread] or queries.own is None:
            return masks
        size = queries.shape(queries.plan.own.level)
        q, k = (tensor[0] for tensor in queries.own)
        affinity = self_attention(q, k, self.backbone.unet_config.heads(q.shape[-1]))
        finer = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
        cut = CUT if spread == "objects" else 0.0
        return masks_of(propagate(finer.flatten(1).to(affinity), affinity, ROUNDS[spread], cut).unflatten(1, size))


def check_spread(spread: str) -> str:
    """Raises InputError for one that is not known."""
    if spread not in SPREADS:
        raise InputError(f"no spread {spread!r}: choose one of {', '.join(SPREADS)}")
    return spread


def pure_noise(z: Tensor) -> Tensor:
    """What attention to a picture of latents [B, C, h, w] is compared with: noise [NOISES, C, ...], always the same."""
    sides = (min(side, NOISE_GRID) for side in z.shape[-2:])
    return torch.randn(NOISES, z.shape[1], *sides, generator=torch.Generator().manual_seed(NOISES)).to(z)


def read_queries(backbone, z: Tensor, conditioning: Text, layers: Plan, timestep: int, seed: int) -> Queries:
    """The queries of latents [B, C, h, w] noised to `timestep`, in one pass that ends at the last layer read."""
    conditioning = conditioning.expand(len(z)) if len(conditioning) == 1 else conditioning
    outputs = backbone.observe(z, conditioning, layers.modules(backbone.transformer), timestep=timestep, seed=seed)
    queries = Queries.of(layers, tuple(z.shape[-2:]), outputs)
    if queries is None:
        raise InputError(f"{backbone.name} ran without passing the layers that its attention is read from")
    return queries


def phrase_keys(backbone, layers: Plan, text: Text, others: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer the keys [P, M + N, C] that the attention is divided among, and which of them are valid
    [P, M + N]: those of the words of each phrase and, last, of other encoded tokens [1, N, D]."""
    most = max(text.lengths)
    if not min(text.lengths):
        raise InputError("a phrase has no words that the text encoder knows: say it otherwise")
    others = others.to(text.context).expand(len(text), -1, -1)
    context = torch.cat([text.context[:, 1 : most + 1], others], dim=1)
    words = torch.arange(most)[None] < torch.tensor(text.lengths)[:, None]
    valid = F.pad(words, (0, others.shape[1]), value=True)
    return [(keys, valid.to(keys.device)) for keys in backbone.project(context, layers.keys(backbone.transformer))]
