"""Masks of phrases from the attention of a diffusion transformer. Tensors in, tensors out.

Two things tell at an image token which concept is there: how much of its attention goes to the concept's words, and how
alike are the outputs of attention at the token and at those words (ConceptAttention, ICML 2025). In both the phrases
compete with each other and with words for the background. Both are measured in standard deviations above what they are
on pure noise, as for UNets (`attention_maps.py`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.joint import BlockAttention
from .attention_maps import exact, masks_of

READS = ("attention", "outputs", "both")
SEEDS = 0.05  # share of the positions whose outputs say what a phrase looks like


def similarity(image: Tensor, text: Tensor) -> Tensor:
    """Of outputs [B, N, D] at image tokens and [B, K, D] at words: how much liker each token is to a concept than to
    the mean concept, as a cosine [B, K, N]."""
    with exact(image):
        return torch.einsum("bnd,bkd->bkn", features(image), features(text))


def competition(share: Tensor) -> Tensor:
    """Of the attention [B, N, K] that goes to concepts, the part that goes to each: [B, K, N], summing to 1."""
    return (share / share.sum(-1, keepdim=True).clamp(min=1e-12)).transpose(1, 2)


def scores(block: BlockAttention, read: str = "both") -> list[Tensor]:
    """What one block tells of concepts, [B, K, N] each: by attention, by outputs where text has any, or by both."""
    told = []
    if read != "outputs" or block.text is None:
        told.append(competition(block.share))
    if read != "attention" and block.text is not None:
        told.append(similarity(block.image, block.text))
    return told


def evidence(images: Sequence[BlockAttention], noise: Sequence[BlockAttention], read: str = "both") -> Tensor:
    """How far concepts are above their scores on pure noise, in standard deviations, the mean of all blocks and
    scores: [B, K, N]."""
    total = []
    for image, other in zip(images, noise, strict=True):
        for score, level in zip(scores(image, read), scores(other, read), strict=True):
            std, mean = torch.std_mean(level.transpose(0, 1).flatten(1), dim=1)  # [K]
            total.append((score - mean[:, None]) / std.clamp(min=1e-9)[:, None])
    return torch.stack(total).mean(0)


def features(output: Tensor) -> Tensor:
    """Outputs of attention [..., N, D] as vectors of unit length, less their mean over the picture, in float32."""
    output = output.float()
    return F.normalize(output - output.mean(-2, keepdim=True), dim=-1)


def keep_alike(masks: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """Masks [P, N] in 0..1, kept where a position looks as their strongest positions do (FreeFuse, AnchorDiff).

    `outputs` [N, D_i] are those of attention in several blocks. Every position is compared with the mean of the `SEEDS`
    strongest of a mask, weighted by it. That takes N D steps a phrase, where spreading along self-attention takes N^2.
    """
    strongest, places = masks.topk(max(1, round(SEEDS * masks.shape[-1])), dim=-1)  # [P, seeds]
    alike = 0.0  # [P, N]: a cosine, the mean over the blocks
    for look in map(features, outputs):
        with exact(masks):
            seeds = F.normalize(torch.einsum("ps,psd->pd", strongest, look[places]), dim=-1)
            alike = alike + seeds @ look.T / len(outputs)
    return masks_of((masks * alike.clamp(min=0))[:, None])[:, 0]
