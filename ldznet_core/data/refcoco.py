"""RefCOCO, RefCOCO+ (Kazemzadeh et al., 2014), RefCOCOg (Mao et al., 2016) and gRefCOCO (Liu et al., 2023).

Each has a folder of its own with `instances.json` and the expressions, such as `refs(unc).p`. Pictures are those of
COCO's train2014. An expression of gRefCOCO that refers to nothing is an absent phrase.
"""

import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, first_line
from .annotations import Packed, outlined, packed
from .base import Example
from .damage import Damage
from .records import Records, first_file, grouped, json_rows, picture_folder, read_rows, text

PARTITIONS = ("unc", "umd", "google")  # the first that is there is the usual one: unc for RefCOCO and +, umd for g
PLACES = ("images/mscoco/images/train2014", "images/train2014", "train2014", "images")


class Expression(NamedTuple):
    image_id: int
    text: str
    objects: tuple[int, ...]  # annotations; none where nothing is meant


class Picture(NamedTuple):
    file_name: str
    size: tuple[int, int]  # height, width


class PlainUnpickler(pickle._Unpickler):
    """Reads lists, dicts, texts and numbers, and refuses every class and function: a pickle could run anything.

    It is the one written in Python, because eight bytes make the one written in C take 32 GB of memory.
    """

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it names {module}.{name}, which lists of expressions do not")


def refcoco(root: Path, split: str = "train", partition: str = "", images: str = "") -> Records:
    """The expressions of a split, an example each. "test" takes all splits whose name begins so ("testA" and "testB").

    `partition` is "unc", "umd" or "google", by default the first of them that is there. `images` is the folder of
    COCO's train2014 where that is not in or beside `root`. Raises InputError where files are missing or damaged.
    """
    path = _expressions_file(root, partition)
    expressions: list[Expression] = []
    damage = Damage(str(path))
    for number, row in enumerate(_rows(path), start=1):
        with damage.row(path, number):
            if row["split"] == split or (split == "test" and row["split"].startswith("test")):
                expressions += _expressions(row)
    damage.check()

    outlines: dict[int, Packed | None] = dict.fromkeys(id for one in expressions for id in one.objects)
    pictures: dict[int, Picture | None] = dict.fromkeys(one.image_id for one in expressions)

    def image(row: dict) -> None:
        if row["id"] in pictures:
            # An expression's own file name carries a suffix that no file has.
            pictures[row["id"]] = Picture(text(row, "file_name"), (int(row["height"]), int(row["width"])))

    def annotation(row: dict) -> None:
        if row["id"] in outlines:
            outlines[row["id"]] = packed(row["segmentation"])

    damaged = read_rows(first_file(root, "instances.json"), {"images": image, "annotations": annotation})
    folder = picture_folder(images, root, *PLACES, *(f"../{place}" for place in PLACES))
    records = grouped(expressions, lambda one: one.image_id)
    return Records(records, partial(_read, folder.resolve(), pictures, outlines), damage.damaged + damaged)


def _expressions(row: dict) -> list[Expression]:
    ids = row["ann_id"] if isinstance(row["ann_id"], list) else [row["ann_id"]]
    objects = () if row.get("no_target") else tuple(int(id) for id in ids if id != -1)
    return [Expression(int(row["image_id"]), text(one, "sent"), objects) for one in row["sentences"]]


def _expressions_file(root: Path, partition: str) -> Path:
    names = [f"{kind}({name})" for name in ([partition] if partition else PARTITIONS) for kind in ("refs", "grefs")]
    return first_file(root, *(f"{name}.{ending}" for name in names for ending in ("p", "json", "parquet")))


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".json":
        return (row for _, row in json_rows(path))
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return iter(parquet.read_table(path).to_pylist())
        with path.open("rb") as file:
            return iter(PlainUnpickler(file, encoding="latin1").load())  # written by Python 2
    except ImportError:
        raise InputError(f"{path} needs pyarrow to be read: pip install pyarrow") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is no list of expressions ({first_line(error)}); get it again") from None


def _read(
    folder: Path, pictures: Mapping[int, Picture | None], outlines: Mapping[int, Packed | None], one: Expression
) -> Example:
    about = pictures[one.image_id]
    if about is None:
        raise InputError(
            f"instances.json has no sound picture {one.image_id}, which {one.text!r} is about; get it again"
        )
    return outlined(one.text, folder / about.file_name, about.size, [outlines[id] for id in one.objects])
