"""The value that carries a host's inner features to a decoder: which maps, of what timestep, under which text.

Which maps a UNet offers is its own rule (`networks.unet.UNetConfig.taps`); hosts fill this value.
"""

from dataclasses import dataclass

from torch import Tensor


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
