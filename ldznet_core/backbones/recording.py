"""What backbones return, encoded texts and feature maps, and how outputs of any network are recorded by hooks.

Which maps a UNet offers is its own rule (`networks.unet.UNetConfig.taps`); backbones fill this value.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import InputError


@dataclass(frozen=True)
class Text:
    """Encoded texts: `context` [B, N, D] for cross-attention and, in families that have it (SDXL), `pooled` [B, E].

    `lengths` counts the tokens of each text between the start token, which is the first, and the end token.
    """

    context: Tensor
    pooled: Tensor | None = None
    lengths: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice) -> "Text":
        return Text(self.context[rows], None if self.pooled is None else self.pooled[rows], self.lengths[rows])

    def pick(self, rows: Sequence[int]) -> "Text":
        """The texts at `rows`, in that order."""
        pooled = None if self.pooled is None else self.pooled[list(rows)]
        return Text(self.context[list(rows)], pooled, tuple(self.lengths[row] for row in rows) if self.lengths else ())

    def expand(self, count: int) -> "Text":
        """One text for `count` rows."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Text(self.context.expand(count, -1, -1), pooled, self.lengths * count)


@dataclass(frozen=True)
class Features:
    """What `taps` name, in that order: maps right after spatial transformers [B, C, h_i, w_i], and queries of
    cross-attention [B, h_i w_i, C].

    `text` says what conditioned the pass that made them: "phrase", "caption" or "empty". Features made under a
    caption or no text serve every phrase; those made under phrases have one row a phrase.
    """

    maps: tuple[Tensor, ...]
    taps: tuple[str, ...]
    timestep: int
    text: str

    def select(self, taps: Sequence[str]) -> "Features":
        """Those of `taps`, in that order. Raises InputError, naming it, for one that was not recorded."""
        of_tap = dict(zip(self.taps, self.maps, strict=True))
        if missing := [tap for tap in taps if tap not in of_tap]:
            raise InputError(f"the features at {', '.join(missing)}, which this decoder reads, were not recorded")
        return Features(tuple(of_tap[tap] for tap in taps), tuple(taps), self.timestep, self.text)

    def row(self, index: int) -> "Features":
        """The features of one image of the batch, still batched."""
        return Features(tuple(m[index : index + 1] for m in self.maps), self.taps, self.timestep, self.text)


class _AllRecorded(BaseException):
    """Ends a pass once every output is there. Not an Exception, because host programs and extensions catch those."""


def tapped(transformer: Callable[[str], nn.Module], tap: str) -> nn.Module:
    """The module whose output a tap names (see `networks.taps`), given what finds a block's spatial transformer."""
    block, _, index = tap.partition("@")
    return transformer(block).transformer_blocks[int(index)].attn2.to_q if index else transformer(block)


def tapped_keys(transformer: Callable[[str], nn.Module], tap: str) -> nn.Module:
    """What makes keys of a text for the queries that a tap names."""
    block, _, index = tap.partition("@")
    return transformer(block).transformer_blocks[int(index)].attn2.to_k


def whole(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output of a module as a tensor; transformers of diffusers return a tuple of one."""
    return output[0] if isinstance(output, tuple) else output


def rows_of(x: Tensor, rows: slice | Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Picks `rows` of what a layer puts out in a call of its network on `x` [B, ...]; none where that has other rows.
    Extensions for prompts of regions put more of them through attention: whose they are, we cannot know."""
    return lambda output: output[rows] if len(output) == len(x) else output[:0]


@contextmanager
def record(
    modules: dict[str, nn.Module], keep: Callable[[Tensor], Tensor] = whole, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Copies of the outputs of `modules` while the block runs, by name. The hooks are removed when it ends, however
    it ends.

    `keep` picks the rows that are copied; where it picks none, the module is left out. They are copied because host
    programs change these tensors in place later (FreeU, ControlNet). `stop` ends the block at the last of the modules:
    the rest of the network is not computed.
    """
    outputs: dict[str, Tensor] = {}

    def hook_of(name: str):
        def hook(module: nn.Module, inputs: Sequence, output: Tensor) -> None:
            if len(kept := keep(output)):
                outputs[name] = kept.clone()
            if stop and len(outputs) == len(modules):
                raise _AllRecorded

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook_of(name)))
        yield outputs
    except _AllRecorded:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def follow(modules: dict[str, nn.Module]) -> Iterator[Callable[[], str | None]]:
    """Inside, the function that is yielded names the one of `modules` that runs at the moment; None between them. The
    block ends when the last of them has run. The hooks are removed when it ends, however it ends."""
    running: list[str] = []
    left = set(modules)

    def enter(name: str):
        return lambda module, inputs: running.append(name)

    def leave(name: str):
        def hook(module: nn.Module, inputs: Sequence, output: object) -> None:
            running.remove(name)
            left.discard(name)
            if not left:
                raise _AllRecorded

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
        yield lambda: running[-1] if running else None
    except _AllRecorded:
        pass
    finally:
        for handle in handles:
            handle.remove()
