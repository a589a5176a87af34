"""PhraseCut (Wu et al., CVPR 2020): phrases in pictures of Visual Genome, outlined by polygons.

The folder VGPhraseCut_v0 holds `images/<image_id>.jpg`, `refer_<split>.json` and `image_data_split3000.json`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .annotations import Packed, outlined, packed
from .base import Example
from .records import Records, first_file, grouped, read_rows, text

WRONG_SIZE = frozenset(
    (61530, 61564, 150333, 150344, 150417, 150516, 285665, 285743, 285761, 285814, 286065, 286093, 498010, 498042,
     498187, 498246, 498269)
)  # fmt: skip
"""Pictures whose annotations are for another size than their files have. The paper's own loader skips them, too."""


class Phrase(NamedTuple):
    image_id: int
    phrase: str
    polygons: Packed


def phrasecut(root: Path, split: str = "train") -> Records:
    """The phrases of "train", "val", "test" or "miniv" (100 pictures beside "val"). A mask is all instances.

    Raises InputError where the annotation files are missing or damaged.
    """
    sizes: dict[int, tuple[int, int]] = {}
    phrases: list[Phrase] = []

    def picture(row: dict) -> None:
        sizes[row["image_id"]] = (int(row["height"]), int(row["width"]))

    def task(row: dict) -> None:
        if row["image_id"] not in WRONG_SIZE:
            # The paper's loader takes corners for numbers of pixels, of which the first has its centre at 0.
            polygons = [polygon for instance in row["Polygons"] for polygon in instance]
            areas = [polygon for polygon in polygons if len(polygon) > 2] or polygons  # points and lines cover nothing
            phrases.append(Phrase(int(row["image_id"]), text(row, "phrase"), packed(areas, first=0)))

    damaged = read_rows(first_file(root, "image_data_split3000.json", "image_data_split.json"), {"": picture})
    damaged += read_rows(first_file(root, f"refer_{split}.json"), {"": task})
    return Records(grouped(phrases, lambda row: row.image_id), partial(_read, root, sizes), damaged)


def _read(root: Path, sizes: Mapping[int, tuple[int, int]], row: Phrase) -> Example:
    path = root / "images" / f"{row.image_id}.jpg"
    return outlined(row.phrase, path, sizes.get(row.image_id), [row.polygons])
