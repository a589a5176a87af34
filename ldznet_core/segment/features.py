"""Outputs of a backbone's parts, and what a decoder reads of them for phrases: maps as they are, and what queries say
of each phrase.

Queries do not depend on phrases, so those of one pass serve any number of them. How strongly a position attends to a
phrase's words is computed here from queries and keys, before any softmax: its level says whether the thing is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import TorchBackbone
from ..backbones.queries import grid
from ..backbones.recording import Features, Text, record, tapped_keys
from ..decoders.base import Decoder
from ..errors import InputError
from ..networks.layers import split_heads
from .attention_maps import exact


@torch.no_grad()
def noised_outputs(
    backbone: TorchBackbone, z: Tensor, noise: Tensor, timesteps: Tensor, text: Text, modules: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """What `modules` of the backbone put out, by name, in one pass over `z` [B, C, h, w], row i noised by `noise[i]` to
    `timesteps[i]`. Raises InputError where the pass leaves a module out."""
    z, noise, timesteps = (value.to(backbone.device) for value in (z, noise, timesteps))
    with record(dict(modules), stop=True) as outputs:
        backbone.predict(backbone.schedule.add_noise(z, noise, timesteps), timesteps, text)
    if missed := [name for name in modules if name not in outputs]:
        raise InputError(f"{backbone.name} ran without passing {', '.join(missed)}")
    return outputs


@dataclass(frozen=True)
class Keys:
    """Keys of one attention layer: of phrases' words [P, M, C], which of them are valid [P, M], and those of the start
    and the end of the empty text [2, C]."""

    words: Tensor
    valid: Tensor
    empty: Tensor


def phrase_keys(backbone, decoder: Decoder, text: Text, empty: Text) -> list[Keys]:
    """The keys of phrases for each layer whose attention the decoder reads; `empty` is the encoded empty text."""
    if not decoder.attends:
        return []
    most = max(1, *text.lengths)
    valid = torch.arange(most)[None] < torch.tensor(text.lengths).clamp(min=1)[:, None]  # an empty phrase keeps its end
    layers = [tapped_keys(backbone.transformer, tap) for tap in decoder.attends]
    words = backbone.project(text.context[:, 1 : most + 1], layers)
    ends = backbone.project(empty.context[:1, :2], layers)
    return [Keys(k, valid.to(k.device), e[0]) for k, e in zip(words, ends, strict=True)]


def decoder_features(
    decoder: Decoder, outputs: Sequence[Tensor], size: tuple[int, int], keys: Sequence[Keys], heads
) -> list[Tensor]:
    """The features that `decoder` takes for N phrases, N / B an image, of what its taps gave for B images.

    `size` is height and width of the latents, `keys` what `phrase_keys` gave for the phrases, `heads` the backbone's
    `unet_config.heads`. Maps [B, C, h_i, w_i] come first, one a tap, then the attention [N, 2 heads, h_i, w_i] of each
    layer in `decoder.attends`.
    """
    maps = [as_map(one, size) for one in outputs]
    of_tap = dict(zip(decoder.taps, maps, strict=True))
    return maps + [
        attention_logits(of_tap[tap].flatten(2).transpose(1, 2), one, heads(of_tap[tap].shape[1])).unflatten(
            -1, of_tap[tap].shape[-2:]
        )
        for tap, one in zip(decoder.attends, keys, strict=True)
    ]


def as_map(output: Tensor, size: tuple[int, int]) -> Tensor:
    """Queries [B, n, C] as a map [B, C, h_i, w_i] of latents of height and width `size`; a map stays as it is."""
    if output.ndim == 4:
        return output
    shapes = {h * w: (h, w) for h, w in ((grid(size[0], level), grid(size[1], level)) for level in range(8))}
    return output.transpose(1, 2).unflatten(2, shapes[output.shape[1]])


def padded_features(features: Features, size: tuple[int, int], padded: tuple[int, int]) -> Features:
    """Features of latents of height and width `size` for latents that were padded at the right and below: what is
    added repeats the edge, as there."""
    maps = []
    for one in (as_map(output, size) for output in features.maps):  # [B, C, h_i, w_i]
        shapes = {(grid(size[0], level), grid(size[1], level)): level for level in range(7, -1, -1)}
        level = shapes[tuple(one.shape[-2:])]
        added = [grid(side, level) - had for side, had in zip(padded, one.shape[-2:], strict=True)]
        maps.append(F.pad(one.float(), (0, added[1], 0, added[0]), mode="replicate").to(one))
    return replace(features, maps=tuple(maps))


def attention_logits(q: Tensor, keys: Keys, heads: int) -> Tensor:
    """The log-odds that a position attends to a phrase's word and not to the empty text, by head: their mean and their
    largest over the phrase's words. Queries [B, n, C] and keys of N phrases -> [N, 2 heads, n], in float32."""
    each = len(keys.words) // len(q)
    with exact(q):
        q = split_heads(q.float(), heads) * (q.shape[-1] // heads) ** -0.5  # [B, heads, n, d]
        rest = q @ split_heads(keys.empty[None].float(), heads).mT  # [B, heads, n, 2]
        words = q.repeat_interleave(each, 0) @ split_heads(keys.words.float(), heads).mT  # [N, heads, n, M]
    odds = words - rest.logsumexp(-1, keepdim=True).repeat_interleave(each, 0)
    valid = keys.valid[:, None, None]  # [N, 1, 1, M]
    mean = (odds * valid).sum(-1) / valid.sum(-1)
    return torch.cat([mean, odds.masked_fill(~valid, -torch.inf).amax(-1)], 1)
