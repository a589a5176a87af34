"""Which things and pictures of the miniature world have looks of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..imaging.looks import restyle


@dataclass(frozen=True)
class Looks:
    """The shares of things and of whole pictures that are restyled, and of pictures that show nothing. With `keep_hue`
    no thing changes its hue, so that colour words stay true."""

    things: float = 0.5
    pictures: float = 0.25
    empty: float = 0.0
    keep_hue: bool = False


def restyle_things(
    rng: np.random.Generator, sprites: Sequence, patches: Sequence[np.ndarray], looks: Looks, size: int
) -> tuple[list, list[np.ndarray]]:
    """Sprites and their patches [h, w, 4], some in another look; one whose hue changed keeps no colour word. No patch
    becomes larger than `size`: an outline may need more room than there is."""
    chosen, restyled = [], []
    for sprite, patch in zip(sprites, patches, strict=True):
        if rng.random() < looks.things:
            patch, changed = restyle(rng, patch, looks.keep_hue)
            patch = patch[:size, :size]
            sprite = replace(sprite, colour=None) if changed else sprite
        chosen.append(sprite)
        restyled.append(patch)
    return chosen, restyled
