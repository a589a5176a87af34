"""What a UNet's attention layers ask with: which layers are listened to, and the value that carries their queries.

Queries hold no words. Any phrase can be put to them afterwards, so one pass, or a sampler's own calls, serves every
phrase. What they answer is computed in `attention.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .networks.unet import UNetConfig

POSITIONS = 12  # a grid with fewer to a side is too coarse to place a thing
SHARES = ((1.0,), (0.7, 0.3))  # of the coarser and the finer grid (iSeg, 2024)
SETTLED = 600  # timestep at which a sampler has decided what is where
LARGEST = 5000  # positions of a self-attention that is kept: its map has that many squared values


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
    """The layers that are listened to. `cross` are groups of one level each, coarsest first, with the group's share;
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


def plan(config: UNetConfig, height: int, width: int) -> Plan:
    """The layers to listen to for latents of `height` x `width`.

    Cross-attention places things best on the two coarsest grids that still have `POSITIONS` to a side: 16 and 32 for
    SD 1.x at 512 px, 32 and 64 for SDXL at 1024. Self-attention is read in the decoder, on the finest grid of bearable
    size. Of deep transformers the middle block is asked.
    """
    levels = sorted(config.attention_levels)
    side = math.sqrt(height * width)
    placing = [level for level in levels if side / 2**level >= POSITIONS] or levels[:1]
    chosen = placing[:-3:-1]
    bearable = [level for level in levels if grid(height, level) * grid(width, level) <= LARGEST]
    own = None
    if bearable:
        decoder = [layer for layer in layers(config, bearable[0]) if layer.block.startswith("output")]
        own = decoder[len(decoder) // 2]
    groups = zip(SHARES[len(chosen) - 1], (layers(config, level) for level in chosen), strict=True)
    return Plan(tuple(groups), own)


def layers(config: UNetConfig, level: int) -> tuple[Layer, ...]:
    """One layer of every spatial transformer on a level, encoder first."""
    per_level, levels = config.num_res_blocks, len(config.channel_mult)
    encoder = (f"input_blocks.{level * (per_level + 1) + 1 + i}" for i in range(per_level))
    decoder = (f"output_blocks.{(levels - 1 - level) * (per_level + 1) + i}" for i in range(per_level + 1))
    return tuple(Layer(block, config.depth(level) // 2, level) for block in (*encoder, *decoder))


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
    def of(cls, plan: Plan, size: tuple[int, int], heard: dict[str, Tensor]) -> "Queries | None":
        """What the modules of `plan` put out in one pass; None where a layer was not passed, or with another number
        of positions than its grid has (extensions merge positions, or shrink grids, for speed)."""

        def fits(name: str, layer: Layer) -> bool:
            return name in heard and heard[name].shape[1] == grid(size[0], layer.level) * grid(size[1], layer.level)

        if not all(fits(f"cross {i}", layer) for i, layer in enumerate(plan.layers)):
            return None
        own = None
        if plan.own and fits("own q", plan.own) and fits("own k", plan.own):
            own = (heard["own q"], heard["own k"])
        return cls(plan, size, tuple(heard[f"cross {i}"] for i in range(len(plan.layers))), own)

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


class Average:
    """Mean queries over the steps of a sampling run, in the memory of one step.

    Keys do not change from step to step, so attention under the mean query is the steps' geometric mean. Self-attention
    is that of the latest step, where edges are clearest. Steps noisier than `SETTLED`, which still lay the picture
    out, are left out.
    """

    def __init__(self):
        self.steps: set[int] = set()
        self.sum: Queries | None = None
        self.dtype: torch.dtype | None = None

    def wants(self, timestep: int) -> bool:
        """Whether a pass at this timestep would be taken in. Of several at one timestep only the first is: guidance
        that perturbs attention makes more."""
        return timestep <= SETTLED and timestep not in self.steps

    def add(self, queries: Queries, timestep: int) -> None:
        self.steps.add(timestep)
        if self.sum is None or queries.size != self.sum.size:
            self.steps, self.dtype = {timestep}, queries.cross[0].dtype
            self.sum = replace(queries, cross=tuple(q.to(torch.float32, copy=True) for q in queries.cross))
        else:
            for total, q in zip(self.sum.cross, queries.cross, strict=True):
                total += q
            self.sum = replace(queries, cross=self.sum.cross)

    @property
    def mean(self) -> Queries | None:
        """The mean in the precision of the passes; None where no step was taken in."""
        if self.sum is None:
            return None
        return replace(self.sum, cross=tuple((q / len(self.steps)).to(self.dtype) for q in self.sum.cross))
