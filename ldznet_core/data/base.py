"""What the trainer and the evaluator read: examples, one phrase in one picture each."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Example:
    """What a phrase names in a picture. `image` or `latent` may be None, not both."""

    phrase: str
    mask: np.ndarray  # bool [H, W]; all false where the picture holds no such thing
    image: np.ndarray | None = None  # uint8 [H, W, 3]
    latent: Tensor | None = None  # [4, H/8, W/8], scaled to unit variance as the backbone's `encode` gives it
    ignore: np.ndarray | None = None  # bool [H, W]: pixels that are neither trained on nor scored
    caption: str = ""  # of the whole picture; "" where there is none
    picture: str = ""  # names the picture in its data set; "" where no other example shares it

    @property
    def counts(self) -> np.ndarray:
        """bool [H, W]: the pixels that are not ignored."""
        return np.ones_like(self.mask) if self.ignore is None else ~self.ignore


class Dataset(Protocol):
    """A finite list of examples. The same index is the same example in every run of the same seed.

    Evaluation works on all phrases of a picture at once where its examples have its name and stand in a row. An example
    that cannot be read raises InputError with a sentence that names the file; `Damage` in `damage.py` skips it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class Mix:
    """Several data sets in a row, as one. `shares` says which part of the draws each one gets; they add up to 1."""

    parts: Sequence[Dataset]
    shares: Sequence[float]
    ends: Sequence[int] = field(init=False)  # where each part ends in the row

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", tuple(accumulate(map(len, self.parts))))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} examples, so none has the index {index}")
        part = bisect_right(self.ends, index)
        return self.parts[part][index - self.start(part)]

    def start(self, part: int) -> int:
        """The index of the first example of a part."""
        return self.ends[part - 1] if part else 0


def draw(dataset: Dataset, rng: np.random.Generator, count: int) -> list[int]:
    """Indices of `count` examples, with repetition: uniform, or by the shares of a `Mix`.

    Raises InputError where there is nothing to draw from.
    """
    if not len(dataset):
        raise InputError("the data set holds no examples; check its folder and its split")
    if not isinstance(dataset, Mix):
        return rng.integers(len(dataset), size=count).tolist()
    chosen = rng.choice(len(dataset.parts), size=count, p=dataset.shares)
    return [dataset.start(part) + int(rng.integers(len(dataset.parts[part]))) for part in chosen.tolist()]
