"""What is read of the attention of a diffusion transformer: how much of it goes to the words of a prompt, and what it
puts out at every image token.

Tensors in, tensors out. Nothing here knows a host program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

SEPARATOR, END = ", ", "."


@dataclass(frozen=True)
class Concepts:
    """One prompt that names several concepts, as the host program encodes it.

    `tokens` holds for each concept the rows of the prompt's context that are its words; the last concept is the full
    stop, which stands for the rest of the picture. The context has `length` rows.
    """

    prompt: object
    tokens: tuple[tuple[int, ...], ...]
    length: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Noised:
    """Latents [B, C, h, w] as a sampler had them at one step, `timestep` thousandths of them noise."""

    z: Tensor
    timestep: float

    def row(self, index: int) -> "Noised":
        """Those of one image of the batch, still batched."""
        return Noised(self.z[index : index + 1], self.timestep)


@dataclass(frozen=True)
class BlockAttention:
    """What the attention of one block shows of K concepts at N image tokens.

    `share` [B, N, K] is the part of an image token's attention that goes to a token of each concept, the mean over
    its tokens and the heads. `image` [B, N, D] are the outputs of attention at the image tokens, in the precision of
    the model, `text` [B, K, D] the mean outputs at the tokens of each concept: None where text tokens put nothing out.
    """

    share: Tensor
    image: Tensor
    text: Tensor | None


def prompt_of(concepts: Sequence[str]) -> str:
    """The one prompt that names all of them."""
    return SEPARATOR.join(concepts) + END


def spans(tokenize: Callable[[str], Sequence], concepts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Where each concept, and last the full stop, stands in the tokens of `prompt_of(concepts)`.

    Whatever a tokenizer puts around a prompt, the tokens of its beginning are the beginning of its tokens: so those of
    growing parts of the prompt are compared with those of the whole. Raises InputError for a concept without tokens.
    """
    whole, found, before = tokenize(prompt_of(concepts)), [], ""
    for concept in concepts:
        start = shared_start(tokenize(before.rstrip()), whole)
        end = shared_start(tokenize(before + concept), whole)
        if end <= start:
            raise InputError(f"{concept!r} has no words that the text encoder knows: say it otherwise")
        found.append(tuple(range(start, end)))
        before += concept + SEPARATOR
    return (*found, (found[-1][-1] + 1,))


def shared_start(one: Sequence, other: Sequence) -> int:
    """How many tokens two sequences have in common at their start."""
    for count, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return count
    return min(len(one), len(other))


def heads_first(x: Tensor, heads: int, split: bool) -> Tensor:
    """Values of attention as [B, heads, L, d], a view. They come so where `split`, else as [B, L, heads d] or
    [B, L, heads, d]."""
    if split:
        return x
    return (x.unflatten(-1, (heads, -1)) if x.ndim == 3 else x).transpose(1, 2)


def joined(output: Tensor) -> Tensor:
    """Outputs of attention, [B, L, heads d] or [B, heads, L, d], as the former."""
    return output if output.ndim == 3 else output.transpose(1, 2).flatten(2)


def shares(
    attend: Callable[[Tensor], Tensor], v: Tensor, heads: int, split: bool, tokens: Sequence[Sequence[int]]
) -> Tensor:
    """The share of every query's attention that goes to a token of each concept, the mean over its tokens and the
    heads: [B, L, K], in float32.

    `attend` is the attention of the call that is read, as a function of its values. With values that are 1 at one
    concept's tokens and 0 elsewhere it puts out the share of that concept, so any implementation of attention serves,
    and no matrix of all pairs is made. The call's own values `v` (`heads_first` tells their layouts) say the shape.
    """
    parts, width = [], heads_first(v, heads, split).shape[-1]
    for start in range(0, len(tokens), width):
        part, values = tokens[start : start + width], torch.zeros(v.shape, dtype=v.dtype, device=v.device)
        view = heads_first(values, heads, split)
        for column, rows in enumerate(part):
            view[:, :, list(rows), column] = 1 / len(rows)
        output = joined(attend(values)).unflatten(-1, (heads, -1))  # [B, L, heads, d]
        parts.append(output.float().mean(2)[..., : len(part)])
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Layout:
    """Where image and words stand in the sequences that a network's attention runs over.

    `order` and `left_padded` are those of `families.dit`. There are `tokens` image tokens, which the network fills up
    to `filled`.
    """

    order: str
    left_padded: bool
    tokens: int
    filled: int
    concepts: Concepts

    def places(self, queries: int, keys: int) -> tuple[slice, int] | None:
        """The image's place among so many queries and the first place of the prompt among the keys; None where a call
        of attention is not between image and prompt."""
        if self.order == "cross":
            place, first, end = 0, 0, keys
            if queries != self.filled:
                return None
        else:
            text = queries - self.filled
            place, first, end = (0, self.filled, queries) if self.order == "image first" else (text, 0, text)
            if queries != keys or text < 1:
                return None
            if self.left_padded:
                first = text - self.concepts.length
        if first + self.concepts.tokens[-1][-1] >= end:
            return None
        return slice(place, place + self.tokens), first

    def read(
        self,
        attend: Callable[[Tensor], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        heads: int,
        split: bool,
    ) -> BlockAttention | None:
        """What one call of attention shows; None of a call that is not between image and prompt. `attend` is that call
        as a function of its values, `output` what it put out for `v`."""
        places = self.places(*(heads_first(x, heads, split).shape[-2] for x in (q, k)))
        if places is None:
            return None
        image, first = places
        tokens = [[first + token for token in rows] for rows in self.concepts.tokens]
        outputs, text = joined(output), None
        if self.order != "cross":
            text = torch.stack([outputs[:, rows].float().mean(1) for rows in tokens], dim=1)
        return BlockAttention(shares(attend, v, heads, split, tokens)[:, image], outputs[:, image].clone(), text)
