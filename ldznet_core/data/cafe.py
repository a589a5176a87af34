"""CAFE (Liang et al., 2026): edited photographs, each with a phrase that names the thing and one that misleads.

The folder holds `CAFEval2026_annotations.json` and `CAFEval2026_imgs`. The format is COCO's with a phrase
(`text_input`) in each entry of `images`; an entry without annotation is an absent phrase.
SA-Co's files are of the same format.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .annotations import Packed, outlined, packed
from .base import Example
from .records import Records, first_file, grouped, picture_folder, read_rows, text

ANNOTATIONS = "CAFEval2026_annotations.json"


class Query(NamedTuple):
    """A phrase that is asked of a picture."""

    id: int
    file: str
    size: tuple[int, int]  # height, width
    phrase: str


def cafe(root: Path, split: str = "test", annotations: str = ANNOTATIONS, images: str = "") -> Records:
    """An example for each phrase; it has one split only, whatever that is called.

    `annotations` is another file in the folder, such as CAFEval2026_SM.json. Raises InputError where files are missing
    or damaged.
    """
    queries: list[Query] = []
    outlines: dict[int, list[Packed | None]] = {}

    def image(row: dict) -> None:
        size = (int(row["height"]), int(row["width"]))
        queries.append(Query(int(row["id"]), text(row, "file_name"), size, text(row, "text_input")))

    def annotation(row: dict) -> None:
        objects = outlines.setdefault(int(row["image_id"]), [])
        objects.append(None)  # stays if the next line fails, so that the phrase does not seem absent
        objects[-1] = packed(row["segmentation"])

    damaged = read_rows(first_file(root, annotations), {"images": image, "annotations": annotation})
    folder = picture_folder(images, root, "CAFEval2026_imgs", "images")
    return Records(grouped(queries, lambda query: query.file), partial(_read, folder, outlines), damaged)


def _read(folder: Path, outlines: Mapping[int, Sequence[Packed | None]], query: Query) -> Example:
    return outlined(query.phrase, folder / query.file, query.size, outlines.get(query.id, ()))
