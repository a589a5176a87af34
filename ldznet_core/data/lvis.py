"""LVIS (Gupta et al., CVPR 2019): pictures of COCO with masks of 1,203 nouns, and nouns that are verified absent.

The folder holds `lvis_v1_<split>.json` and COCO's pictures in `train2017` and `val2017`, for both splits.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .annotations import Packed, outlined, packed
from .base import Example
from .damage import Damage
from .records import Records, first_file, picture_folder, read_rows, text


class Picture(NamedTuple):
    file: str  # such as train2017/000000000009.jpg
    size: tuple[int, int]  # height, width
    absent: Sequence[int]  # nouns that were looked for in vain
    incomplete: Sequence[int]  # nouns of which not every instance is outlined


class Noun(NamedTuple):
    picture: Picture
    phrase: str
    objects: Sequence[Packed | None]  # none where the noun is absent


def lvis(root: Path, split: str = "train", images: str = "") -> Records:
    """One example for each noun in a picture, and one with an empty mask for each that is verified absent.

    Nouns of which not every instance is outlined are left out. `images` is the folder that holds `train2017` and
    `val2017` where that is not `root`. Raises InputError where files are missing or damaged.
    """
    path = first_file(root, f"lvis_v1_{split}.json", f"annotations/lvis_v1_{split}.json")
    names: dict[int, str] = {}
    pictures: dict[int, Picture] = {}
    outlines: dict[int, dict[int, list[Packed | None]]] = {}  # by picture and noun

    def category(row: dict) -> None:
        # Meanings are told apart as in "apple_(fruit)".
        names[row["id"]] = text(row["synonyms"], 0).partition("_(")[0].replace("_", " ")

    def image(row: dict) -> None:
        file = "/".join(text(row, "coco_url").split("/")[-2:])  # the files of a split lie in both of COCO's folders
        absent, incomplete = (
            tuple(map(int, row.get(key, ()))) for key in ("neg_category_ids", "not_exhaustive_category_ids")
        )
        pictures[row["id"]] = Picture(file, (int(row["height"]), int(row["width"])), absent, incomplete)

    def annotation(row: dict) -> None:
        objects = outlines.setdefault(row["image_id"], {}).setdefault(row["category_id"], [])
        objects.append(None)  # stays if the next line fails, so that no mask seems whole without the object
        objects[-1] = packed(row["segmentation"])

    damaged = read_rows(path, {"categories": category, "images": image, "annotations": annotation})
    records: list[Noun] = []
    damage = Damage(f"lvis {split}")
    for image_id, picture in pictures.items():
        with damage.item():
            nouns = outlines.get(image_id, {})
            if not {*nouns, *picture.absent} <= set(names):
                raise InputError(f"{path}: {picture.file} has a noun that is in no category; get it again")
            complete = [noun for noun in nouns if noun not in picture.incomplete]
            records += [Noun(picture, names[noun], nouns[noun]) for noun in complete]
            records += [Noun(picture, names[noun], ()) for noun in picture.absent]
    damage.check()
    return Records(records, partial(_read, picture_folder(images, root, ".")), damaged + damage.damaged)


def _read(folder: Path, noun: Noun) -> Example:
    return outlined(noun.phrase, folder / noun.picture.file, noun.picture.size, noun.objects)
