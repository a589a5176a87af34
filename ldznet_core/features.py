"""The values that hosts hand over, encoded texts and inner features, and how features are overheard in any UNet.

Which maps a UNet offers is its own rule (`networks.unet.UNetConfig.taps`); hosts fill this value.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


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

    def expand(self, count: int) -> "Text":
        """One text for `count` rows."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Text(self.context.expand(count, -1, -1), pooled, self.lengths * count)


@dataclass(frozen=True)
class Features:
    """Maps right after spatial transformers, in the order of `taps`, each [B, C, h_i, w_i].

    `text` says what conditioned the pass that made them: "phrase", "caption" or "empty". Features made under a
    caption or no text serve every phrase; those made under phrases have one row a phrase.
    """

    maps: tuple[Tensor, ...]
    taps: tuple[str, ...]
    timestep: int
    text: str

    def repeat(self, times: int) -> "Features":
        """Each row `times` times in place (image-major), so that one row serves that many phrases."""
        maps = tuple(m.repeat_interleave(times, dim=0) for m in self.maps)
        return Features(maps, self.taps, self.timestep, self.text)

    def row(self, index: int) -> "Features":
        """The features of one image of the batch, still batched."""
        return Features(tuple(m[index : index + 1] for m in self.maps), self.taps, self.timestep, self.text)


class _Heard(BaseException):
    """Ends a pass once every map is there. No Exception, because hosts and their extensions catch those."""


def whole(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """What a module put out; diffusers' transformers put out a tuple of one."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def overhear(
    modules: dict[str, nn.Module], keep: Callable[[Tensor], Tensor] = whole, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Copies of what `modules` put out while the block runs, by name. Hooks are gone when it ends, however it ends.

    `keep` picks the rows worth a copy; copies, because hosts change those very tensors in place later (FreeU,
    ControlNet). `stop` ends the block at the last of them: what comes after in the network is not computed.
    """
    heard: dict[str, Tensor] = {}

    def listener(name: str):
        def listen(module: nn.Module, given: Sequence, output: Tensor) -> None:
            heard[name] = keep(output).clone()
            if stop and len(heard) == len(modules):
                raise _Heard

        return listen

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(listener(name)))
        yield heard
    except _Heard:
        pass
    finally:
        for handle in handles:
            handle.remove()
