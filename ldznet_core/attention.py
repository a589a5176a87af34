"""Masks without a decoder: what the model's own attention, or its noise estimates, say of where a phrase is.

Tensors in, tensors out. Attention is recomputed from queries (`queries.py`) and keys, so a phrase need not have been
in the prompt (as in OVAM, CVPR 2024); `training_free.py` runs the model.

A phrase's words contend with the start and end of the empty text for the attention of every position. What the words
win is measured in standard deviations above what they win on pure noise: this zero means "nothing says so", and is
the same for all phrases and models, where a stretch from minimum to maximum would light up something in any picture.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .networks.layers import split_heads
from .networks.unet import UNetConfig
from .queries import Queries

PEAK = 0.02  # share of the positions whose mean counts as the highest value
CUT = 0.015  # lambda of iSeg: what is below 2 % of a position's strongest tie is cut
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


def words_won(queries: Queries, keys: Sequence[tuple[Tensor, Tensor]], config: UNetConfig) -> list[Tensor]:
    """The attention that the words of phrases win, for each group of `queries.plan.cross` its mean [B, P, n].

    `keys` holds for each layer keys [P, M + 2, C] and which of them are valid; the last two are the empty text's.
    """
    won, layer = [], 0
    for _, group in queries.plan.cross:
        parts = []
        for _ in group:
            q, (k, valid) = queries.cross[layer], keys[layer]
            parts.append(cross_attention(q, k, config.heads(q.shape[-1]), valid)[..., :-2].sum(-1))
            layer += 1
        won.append(sum(parts) / len(parts))
    return won


def evidence(won: Sequence[Tensor], noise: Sequence[Tensor], queries: Queries) -> Tensor:
    """How far the attention of phrases is above what they win on noise, in standard deviations: [B, P, h, w] on the
    finest grid listened to. `won` and `noise` are `words_won` of images and of noise latents."""
    groups = queries.plan.cross
    size = queries.shape(groups[-1][1][0].level)
    total = 0.0
    for (share, group), image, other in zip(groups, won, noise, strict=True):
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
    """Values [..., h, w], 0 where nothing speaks for the phrase, as soft masks in 0..1, 1 at their peak. What has no
    peak above 0 is all 0."""
    highest = peak(values)[..., None, None]
    return torch.where(highest > 0, values / highest.clamp(min=1e-9), 0).clamp(0, 1)


def spread(masks: Tensor, ties: Tensor, rounds: int, cut: float = CUT) -> Tensor:
    """Masks [P, n] after `rounds` of each position taking on what those it attends to say (ties [n, n], a row a
    query), by products of matrix and vector alone.

    With `cut` > 0 weak ties are cut first and each round starts from the lowest value (entropy reduction, iSeg):
    it fills things and stops at their edges. Without it this is the plain power ties^rounds, which suits stuff.
    """
    if cut:
        ties = strongest(ties, cut)
    for _ in range(rounds):
        with exact(masks):
            masks = masks @ ties.T
        if cut:
            masks = masks - masks.amin(1, keepdim=True)
            masks = masks / masks.sum(1, keepdim=True).clamp(min=1e-12)
    return masks


def strongest(ties: Tensor, cut: float) -> Tensor:
    """Ties [n, n] without the weak ones (equation of iSeg's entropy reduction: x + cut log10(e x), x the share of the
    strongest tie to that position), rows summing to 1. Some rows at once: the result is all that is as large."""
    best, kept = ties.amax(0).clamp(min=1e-12), torch.empty_like(ties)
    for start in range(0, len(ties), ROWS):
        part = ties[start : start + ROWS] / best
        part = (part + cut * torch.log10(math.e * part.clamp(min=1e-30))).clamp(min=0)
        kept[start : start + ROWS] = part / part.sum(1, keepdim=True).clamp(min=1e-12)
    return kept


def noise_difference(said: Tensor, unsaid: Tensor) -> Tensor:
    """How much a phrase changes what the model takes for the clean latent (paper, Figure 1): the norm over channels
    of the difference of [P, 4, h, w] and [1, 4, h, w], a little blurred: [P, h, w]."""
    difference = (said.float() - unsaid.float()).norm(dim=1, keepdim=True)
    return F.avg_pool2d(difference, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)[:, 0]
