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
    stop, which stands for the rest of the picture. The context has `length` rows. Its first `caption` rows are what
    the picture shows, and rule what is drawn; then the concepts ride along (`riding.py`).
    """

    prompt: object
    tokens: tuple[tuple[int, ...], ...]
    length: int
    caption: int = 0

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


@dataclass(frozen=True)
class Call:
    """One call of attention, as its network makes it: `attend(q, k, v, rows)`, where `rows` are those of queries and of
    keys if they are not all of the network's call (`heads_first` tells the layouts of `q`, `k` and `v`)."""

    attend: Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None], Tensor]
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    split: bool
    rows: tuple[Tensor, Tensor] | None = None

    @property
    def sizes(self) -> tuple[int, int]:
        """How many queries and keys there are."""
        return tuple(heads_first(x, self.heads, self.split).shape[-2] for x in (self.q, self.k))

    def output(self, values: Tensor | None = None) -> Tensor:
        """What attention puts out for its own values, or for others: [B, L, heads d] or [B, heads, L, d]."""
        return self.attend(self.q, self.k, self.v if values is None else values, self.rows)

    def part(self, queries: Tensor, keys: Tensor) -> "Call":
        """The call of some queries [L] over some keys [M], given by their rows."""
        dim = 2 if self.split else 1
        q, k, v = (
            x.index_select(dim, rows) for x, rows in ((self.q, queries), (self.k, keys), (self.v, keys))
        )
        return Call(self.attend, q, k, v, self.heads, self.split, (queries, keys))

    def shares(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """The share of every query's attention that goes to a token of each concept, the mean over its tokens and the
        heads: [B, L, K], in float32.

        With values that are 1 at one concept's tokens and 0 elsewhere, attention puts out the share of that concept.
        So any implementation of attention serves, and no matrix of all pairs is made.
        """
        parts, width = [], heads_first(self.v, self.heads, self.split).shape[-1]
        for start in range(0, len(tokens), width):
            part = tokens[start : start + width]
            values = torch.zeros(self.v.shape, dtype=self.v.dtype, device=self.v.device)
            view = heads_first(values, self.heads, self.split)
            for column, rows in enumerate(part):
                view[:, :, list(rows), column] = 1 / len(rows)
            output = joined(self.output(values)).unflatten(-1, (self.heads, -1))  # [B, L, heads, d]
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

    def read(self, call: Call, output: Tensor) -> BlockAttention | None:
        """What one call of attention, which put out `output`, shows; None of a call that is not between image and
        prompt."""
        places = self.places(*call.sizes)
        if places is None:
            return None
        image, first = places
        tokens = [[first + token for token in rows] for rows in self.concepts.tokens]
        outputs, text = joined(output), None
        if self.order != "cross":
            text = mean_outputs(outputs, tokens)
        return BlockAttention(call.shares(tokens)[:, image], outputs[:, image].clone(), text)


def mean_outputs(outputs: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Of outputs [B, L, D] the mean at the tokens of each concept: [B, K, D], in float32."""
    return torch.stack([outputs[:, list(rows)].float().mean(1) for rows in tokens], dim=1)
