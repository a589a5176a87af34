"""A data set picture by picture: examples in batches of one size, with the latents of their pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from torch import Tensor

from ..backbones.base import TorchBackbone
from ..data.base import Dataset, Example
from ..data.damage import Damage
from ..data.resize import resized
from ..segment.examples import latents_of

PICTURES = 32  # in a batch
EXAMPLES = 128  # in a batch, unless one picture has more

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of K pictures of one size: `pictures` lists those of each picture, `originals` the same ones at the size
    that they have in the data set. Answers to the N examples come in the order of `examples`."""

    pictures: list[list[Example]]
    originals: list[list[Example]]
    backbone: TorchBackbone | None = None

    @cached_property
    def examples(self) -> list[Example]:
        return [example for picture in self.pictures for example in picture]

    @cached_property
    def rows(self) -> list[int]:
        """For each example the row of its picture."""
        return [row for row, picture in enumerate(self.pictures) for _ in picture]

    @property
    def captions(self) -> list[str]:
        """One a picture."""
        return [picture[0].caption for picture in self.pictures]

    @cached_property
    def z(self) -> Tensor:
        """The pictures' latents [K, C, H/8, W/8], computed once, when a predictor first asks for them."""
        return latents_of(self.backbone, [picture[0] for picture in self.pictures]).cpu()


def by_picture(dataset: Dataset, damage: Damage | None = None) -> Iterator[list[Example]]:
    """Examples picture by picture: neighbours that name the same picture and have its size go together. With `damage`
    those that cannot be read are counted and left out."""

    def key(pair: tuple[int, Example]) -> tuple:
        index, example = pair
        return example.picture or index, example.mask.shape

    read = damage.read if damage else lambda dataset, index: dataset[index]
    examples = ((i, example) for i in range(len(dataset)) if (example := read(dataset, i)) is not None)
    for _, group in groupby(examples, key):
        yield [example for _, example in group]
    if damage:
        damage.check()


def batches(
    dataset: Dataset,
    backbone: TorchBackbone | None = None,
    size: Callable[[int, int], Size] | None = None,
    damage: Damage | None = None,
) -> Iterator[Batch]:
    """The whole data set in its order. A batch ends at `PICTURES` pictures or `EXAMPLES` examples, or where the size
    changes. `size` gives the height and width that a picture of some height and width is worked on at; without it
    pictures keep theirs."""
    pictures: list[list[Example]] = []
    originals: list[list[Example]] = []
    for original in by_picture(dataset, damage):
        picture = [resized(e, *size(*e.mask.shape)) for e in original] if size else original
        full = len(pictures) == PICTURES or sum(map(len, pictures)) + len(picture) > EXAMPLES
        if pictures and (full or pictures[0][0].mask.shape != picture[0].mask.shape):
            yield Batch(pictures, originals, backbone)
            pictures, originals = [], []
        pictures.append(picture)
        originals.append(original)
    if pictures:
        yield Batch(pictures, originals, backbone)


@dataclass(frozen=True)
class First:
    """The first `count` examples of a data set."""

    dataset: Dataset
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.dataset))

    def __getitem__(self, index: int) -> Example:
        return self.dataset[index]
