"""Queries of attention layers: the plan of which layers are recorded, and the value that carries their queries.

Queries do not depend on the phrases. One pass, or the calls of a sampler, serves any phrase: its attention is computed
afterwards from these queries and the phrase's keys, in `segment/attention_maps.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """One transformer block: number `index` of the spatial transformer in `block`, on level 0 (finest), 1, ..."""

    block: str
    index: int
    level: int

    def attention(self, find: Callable[[str], nn.Module], kind: str) -> nn.Module:
        """Its `attn1` (to itself) or `attn2` (to the text), given what finds a block's spatial transformer."""
        return getattr(find(self.block).transformer_blocks[self.index], kind)


@dataclass(frozen=True)
class Plan:
    """The layers that are recorded. `cross` are groups of one level each, coarsest first, with the group's share;
    `own` is the self-attention that says which positions belong together, None where no grid is fine enough."""

    cross: tuple[tuple[float, tuple[Layer, ...]], ...]
    own: Layer | None

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(layer for _, group in self.cross for layer in group)

    @property
    def is_finer(self) -> bool:
        """Whether the self-attention knows more of edges than the cross-attention with the largest share does."""
        return self.own is not None and self.own.level < self.layers[0].level

    def modules(self, find: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
        """The linear layers whose outputs `Queries.of` needs, by name."""
        modules = {f"cross {i}": layer.attention(find, "attn2").to_q for i, layer in enumerate(self.layers)}
        if self.own:
            own = self.own.attention(find, "attn1")
            modules |= {"own q": own.to_q, "own k": own.to_k}
        return modules

    def keys(self, find: Callable[[str], nn.Module]) -> list[nn.Module]:
        """What makes keys of a text for each of `layers`."""
        return [layer.attention(find, "attn2").to_k for layer in self.layers]


def grid(side: int, level: int) -> int:
    """Positions along a side of the latent that is halved `level` times."""
    return -(-side // 2**level)


@dataclass(frozen=True)
class Queries:
    """Queries of images: `cross[i]` [B, n_i, C_i] of `plan.layers[i]`, `own` the queries and keys [B, n, C] of
    `plan.own`. `size` is the latents' height and width."""

    plan: Plan
    size: tuple[int, int]
    cross: tuple[Tensor, ...]
    own: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, plan: Plan, size: tuple[int, int], outputs: dict[str, Tensor]) -> "Queries | None":
        """What the modules of `plan` put out in one pass; None where a layer was not passed, or with another number
        of positions than its grid has (extensions merge positions, or shrink grids, for speed)."""

        def fits(name: str, layer: Layer) -> bool:
            return name in outputs and outputs[name].shape[1] == grid(size[0], layer.level) * grid(size[1], layer.level)

        if not all(fits(f"cross {i}", layer) for i, layer in enumerate(plan.layers)):
            return None
        own = None
        if plan.own and fits("own q", plan.own) and fits("own k", plan.own):
            own = (outputs["own q"], outputs["own k"])
        return cls(plan, size, tuple(outputs[f"cross {i}"] for i in range(len(plan.layers))), own)

    def __len__(self) -> int:
        return len(self.cross[0])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Queries":
        """The same with every tensor changed."""
        own = self.own and (change(self.own[0]), change(self.own[1]))
        return Queries(self.plan, self.size, tuple(change(q) for q in self.cross), own)

    def row(self, index: int) -> "Queries":
        """The queries of one image of the batch, still batched."""
        return self.map(lambda q: q[index : index + 1])

    @classmethod
    def joined(cls, rows: "Sequence[Queries]") -> "Queries":
        """Those of several images, of one plan and size, as a batch."""
        cross = tuple(torch.cat(parts) for parts in zip(*(q.cross for q in rows), strict=True))
        own = None
        if all(q.own for q in rows):
            own = tuple(torch.cat(parts) for parts in zip(*(q.own for q in rows), strict=True))
        return cls(rows[0].plan, rows[0].size, cross, own)

    def shape(self, level: int) -> tuple[int, int]:
        """Height and width of a level's grid."""
        return grid(self.size[0], level), grid(self.size[1], level)
