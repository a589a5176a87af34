"""Masks without a decoder: where a phrase is by the model's own attention, or by its noise estimates.

Tensors in, tensors out. Attention is recomputed from queries (`backbones/queries.py`) and keys, so a phrase need not
have been in the prompt (as in OVAM, CVPR 2024). `attention.py` and `noise.py` run the model.

The attention of every position is divided among a phrase's words and the start and end of the empty text. The share of
the words is measured in standard deviations above their share on pure noise. So 0 means "no sign of the phrase" for
all phrases and models, where scaling from minimum to maximum would find something in any picture.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.queries import Queries
from ..networks.layers import split_heads
from ..networks.unet import UNetConfig

PEAK = 0.02  # share of the positions whose mean counts as the highest value
CUT = 0.015  # lambda of iSeg: affinity below 2 % of a position's largest is cut
ROUNDS = {"objects": 8, "stuff": 2, "none": 0}
ROWS = 512  # of a self-attention at once: at 64 x 64 positions all heads of it would be 0.5 GB
BLUR = 3


def exact(like: Tensor) -> torch.autocast:
    """Inside, matrices are multiplied in the precision that they have, whatever the model computes in."""
    return torch.autocast(like.device.type, enabled=False)


def cross_attention(q: Tensor, k: Tensor, heads: int, valid: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)), mean over heads: queries [B, N, C], keys [P, M, C] -> [B, P, N, M].

    `valid` [P, M] (bool) leaves keys out of the softmax.
    """
    q, k = split_heads(q.float(), heads), split_heads(k.float(), heads)
    with exact(q):
        scores = torch.einsum("bhnd,phmd->bphnm", q * q.shape[-1] ** -0.5, k)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    return scores.softmax(-1).mean(2)


def self_attention(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)), mean over heads: [N, C] and [N, C] -> [N, N], a row a query, in float32.

    Head by head and some rows at once: nothing but the result is as large as it.
    """
    q, k = split_heads(q[None].float(), heads)[0], split_heads(k[None].float(), heads)[0]  # [heads, N, d]
    total = torch.zeros(q.shape[1], k.shape[1], device=q.device)
    for one, keys in zip(q * q.shape[-1] ** -0.5, k, strict=True):
        for start in range(0, len(one), ROWS):
            with exact(q):
                scores = one[start : start + ROWS] @ keys.T
            total[start : start + ROWS] += scores.softmax(-1) / heads
    return total


def phrase_attention(
    queries: Queries, keys: Sequence[tuple[Tensor, Tensor]], config: UNetConfig, others: int = 2
) -> list[Tensor]:
    """The share of attention that goes to the words of phrases, for each group of `queries.plan.cross` its mean
    [B, P, n].

    `keys` holds for each layer keys [P, M + others, C] and which of them are valid; the last `others` are not of the
    phrases, but what their words compete with: by default the start and the end of the empty text.
    """
    shares, layer = [], 0
    for _, group in queries.plan.cross:
        parts = []
        for _ in group:
            q, (k, valid) = queries.cross[layer], keys[layer]
            parts.append(cross_attention(q, k, config.heads(q.shape[-1]), valid)[..., :-others].sum(-1))
            layer += 1
        shares.append(sum(parts) / len(parts))
    return shares


def evidence(images: Sequence[Tensor], noise: Sequence[Tensor], queries: Queries) -> Tensor:
    """How far the attention of phrases is above that on noise, in standard deviations: [B, P, h, w] on the finest grid
    of the layers read. `images` and `noise` are `phrase_attention` of images and of noise latents."""
    groups = queries.plan.cross
    size = queries.shape(groups[-1][1][0].level)
    total = 0.0
    for (share, group), image, other in zip(groups, images, noise, strict=True):
        std, mean = torch.std_mean(other.transpose(0, 1).flatten(1), dim=1)  # [P]
        above = (image - mean[:, None]) / std.clamp(min=1e-9)[:, None]
        above = above.unflatten(-1, queries.shape(group[0].level))
        total = total + share * F.interpolate(above, size, mode="bilinear", align_corners=False)
    return total


def peak(values: Tensor) -> Tensor:
    """Mean of the highest `PEAK` of the values [..., h, w]: [...]. One position alone may be a stray."""
    flat = values.flatten(-2)
    return flat.topk(max(1, round(PEAK * flat.shape[-1])), dim=-1).values.mean(-1)


def masks_of(values: Tensor) -> Tensor:
    """Values [..., h, w], 0 where there is no sign of the phrase, as soft masks in 0..1, 1 at their peak. What has no
    peak above 0 is all 0; a NaN makes its mask NaN."""
    highest = peak(values)[..., None, None]
    return torch.where(highest <= 0, 0, values / highest.clamp(min=1e-9)).clamp(0, 1)


def propagate(masks: Tensor, affinity: Tensor, rounds: int, cut: float = CUT) -> Tensor:
    """Masks [P, n] after `rounds` in which each position takes the mean of those it attends to, weighted by affinity
    [n, n] (a row a query).

    With `cut` > 0 weak affinity is cut first and each round starts from the lowest value (entropy reduction, iSeg): the
    masks fill objects and stop at their edges. Without it this is the plain power affinity^rounds, which suits stuff.
    """
    if cut:
        affinity = strongest_affinity(affinity, cut)
    for _ in range(rounds):
        with exact(masks):
            masks = masks @ affinity.T
        if cut:
            masks = masks - masks.amin(1, keepdim=True)
            masks = masks / masks.sum(1, keepdim=True).clamp(min=1e-12)
    return masks


def strongest_affinity(affinity: Tensor, cut: float) -> Tensor:
    """Affinity [n, n] with its weak values cut (equation of iSeg's entropy reduction: x + cut log10(e x), x relative to
    the largest affinity to that position), rows summing to 1. Some rows at once: only the result is as large."""
    best, kept = affinity.amax(0).clamp(min=1e-12), torch.empty_like(affinity)
    for start in range(0, len(affinity), ROWS):
        part = affinity[start : start + ROWS] / best
        part = (part + cut * torch.log10(math.e * part.clamp(min=1e-30))).clamp(min=0)
        kept[start : start + ROWS] = part / part.sum(1, keepdim=True).clamp(min=1e-12)
    return kept


def noise_difference(conditioned: Tensor, unconditioned: Tensor) -> Tensor:
    """How much a phrase changes what the model takes for the clean latent (paper, Figure 1): the norm over channels
    of the difference of [P, 4, h, w] and [1, 4, h, w], a little blurred: [P, h, w]."""
    difference = (conditioned.float() - unconditioned.float()).norm(dim=1, keepdim=True)
    return F.avg_pool2d(difference, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)[:, 0]
