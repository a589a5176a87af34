"""What is kept of one sampling run, by whatever sampler: features of chosen steps, and mean queries of the later steps.

A sampler computes them in any case, so that masks of its picture need no further pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor, nn

from .queries import Plan, Queries
from .recording import Features, record, tapped

SETTLED = 600  # timestep at which a sampler has decided what is where; noisier steps still lay the picture out
NEAR = 200  # how far a step's timestep may be from the wanted one
LAST = 350  # the last step of samplers with few steps is below


@dataclass(frozen=True)
class Wanted:
    """Features that are kept of one step: what `taps` name, of the step nearest to `timestep`. Of steps too far from it
    none are kept: an extra pass gives better masks."""

    taps: tuple[str, ...]
    timestep: int

    def accepts(self, timestep: int) -> bool:
        return self.timestep - NEAR <= timestep <= max(self.timestep + NEAR, LAST)


@dataclass(frozen=True)
class _Recorded:
    """The features of one step, and the size of its latents."""

    timestep: int
    size: tuple[int, int]
    maps: tuple[Tensor, ...]


class StepRecorder:
    """Features that are `wanted`, and queries of the layers that `plan_of(height, width)` chooses for the latents;
    neither where left out. All are rows of the positive prompt.

    Queries of cross-attention are averaged over the steps from `SETTLED` on, in the memory of one step: keys do not
    change from step to step, so attention under the mean query is the steps' geometric mean. Self-attention is that of
    the latest step, where edges are clearest. Of calls of one step, the one on the largest part of the latent counts
    (prompts for an area are computed on a part), and of several on it the first (guidance that perturbs attention makes
    more).
    """

    def __init__(self, wanted: Sequence[Wanted] = (), plan_of: Callable[[int, int], Plan] | None = None):
        self.wanted, self.plan_of = tuple(wanted), plan_of
        self.recorded: dict[Wanted, _Recorded] = {}
        self.steps: set[int] = set()
        self.sum: Queries | None = None
        self.dtype: torch.dtype | None = None
        self.lock = Lock()  # on several GPUs, calls of one step run at the same time

    @contextmanager
    def step(
        self,
        timestep: int,
        size: tuple[int, int],
        transformer: Callable[[str], nn.Module],
        positive_rows: Callable[[Tensor], Tensor],
    ) -> Iterator[None]:
        """Record one call of the network, made inside the block, on latents of height and width `size`.

        `transformer` finds the spatial transformer of a block, `positive_rows` the rows of a layer's output that are
        the positive prompt's: none where that cannot be known. A call that raises leaves nothing.
        """
        modules: dict[str, nn.Module] = {}
        plan = self.plan_of(*size) if self.plan_of and self.wants_queries(timestep, size) else None
        for wanted in self.wanted:
            if self.wants(wanted, timestep, size):
                modules |= {tap: tapped(transformer, tap) for tap in wanted.taps}
        if plan:
            modules |= plan.modules(transformer)
        with record(modules, positive_rows) as outputs:
            yield
        with self.lock:
            for wanted in self.wanted:
                if self.wants(wanted, timestep, size) and all(tap in outputs for tap in wanted.taps):
                    maps = tuple(outputs[tap] for tap in wanted.taps)
                    self.recorded[wanted] = _Recorded(timestep, size, maps)
            if plan and self.wants_queries(timestep, size) and (queries := Queries.of(plan, size, outputs)):
                self.add(queries, timestep)

    def wants(self, wanted: Wanted, timestep: int, size: tuple[int, int]) -> bool:
        if not wanted.taps or not wanted.accepts(timestep):
            return False
        if (before := self.recorded.get(wanted)) is None:
            return True
        off, was_off = abs(timestep - wanted.timestep), abs(before.timestep - wanted.timestep)
        return off < was_off or (off == was_off and size[0] * size[1] > before.size[0] * before.size[1])

    def wants_queries(self, timestep: int, size: tuple[int, int]) -> bool:
        if timestep > SETTLED:
            return False
        if self.sum is None or self.sum.size == size:
            return timestep not in self.steps
        return size[0] * size[1] > self.sum.size[0] * self.sum.size[1]

    def add(self, queries: Queries, timestep: int) -> None:
        if self.sum is None or queries.size != self.sum.size:
            self.steps, self.dtype = {timestep}, queries.cross[0].dtype
            self.sum = replace(queries, cross=tuple(q.to(torch.float32, copy=True) for q in queries.cross))
            return
        self.steps.add(timestep)
        for total, q in zip(self.sum.cross, queries.cross, strict=True):
            total += q.to(total.device)  # the step may have run on another GPU
        self.sum = replace(queries, cross=self.sum.cross)

    def features(self, size: tuple[int, int] | None = None) -> tuple[Features, ...]:
        """Those of `wanted` that were recorded, in its order; with `size`, only of latents of that size."""
        kept = [(wanted, self.recorded[wanted]) for wanted in self.wanted if wanted in self.recorded]
        return tuple(
            Features(one.maps, wanted.taps, one.timestep, "caption")
            for wanted, one in kept
            if size in (None, one.size)
        )

    @property
    def queries(self) -> Queries | None:
        """The mean queries in the precision of the passes; None where no step was recorded."""
        if self.sum is None:
            return None
        return replace(self.sum, cross=tuple((q / len(self.steps)).to(self.dtype) for q in self.sum.cross))
