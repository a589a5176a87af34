"""COCO's panoptic segmentation (Kirillov et al., CVPR 2019): things and stuff by categories.

`panoptic_<split>.json` and PNG files in a folder `panoptic_<split>` lie both in the folder or in `annotations`,
pictures in `<split>` or `images/<split>`; the split is "train2017" or "val2017".
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..imaging.images import read_image
from .base import Example
from .damage import Damage
from .label_maps import phrases_of
from .records import Records, first_file, first_folder, picture_folder, read_picture, read_rows, text

VOID = 0  # the segment of unlabelled pixels


class Segments(NamedTuple):
    """The segments of a picture."""

    image_id: int
    file_name: str
    ids: np.ndarray  # int32 [S]
    categories: np.ndarray  # int16 [S]
    crowd: np.ndarray  # bool [S]


class Region(NamedTuple):
    """A phrase in a picture, and the categories whose segments it names."""

    segments: Segments
    phrase: str
    categories: tuple[int, ...]


def panoptic(root: Path, split: str = "train2017", images: str = "") -> Records:
    """One example for each category in a picture, the union of its segments. Crowds and unlabelled pixels are ignored.

    `images` is the folder of the pictures where they lie elsewhere. Raises InputError where files are missing or
    damaged.
    """
    path = first_file(root, f"panoptic_{split}.json", f"annotations/panoptic_{split}.json")
    names: dict[int, str] = {}
    files: dict[int, tuple[str, tuple[int, int]]] = {}
    pictures: list[Segments] = []

    def category(row: dict) -> None:
        names[row["id"]] = text(row, "name")

    def image(row: dict) -> None:
        files[row["id"]] = (text(row, "file_name"), (int(row["height"]), int(row["width"])))

    def annotation(row: dict) -> None:
        pictures.append(_segments(row))

    damaged = read_rows(path, {"categories": category, "images": image, "annotations": annotation})
    damage, records, phrases = Damage(f"coco-panoptic {split}"), [], phrases_of(names.items())
    for picture in pictures:
        with damage.item():
            if picture.image_id not in files:
                raise InputError(f"{path} has no picture {picture.image_id}, which has segments; get it again")
            present = set(picture.categories[~picture.crowd].tolist())
            if not present <= set(names):
                raise InputError(
                    f"{path}: a segment of {picture.file_name} has a category without a name; get it again"
                )
            records += [Region(picture, phrase, own) for phrase, own in phrases.items() if not present.isdisjoint(own)]
    damage.check()
    folder = picture_folder(images, root, split, f"images/{split}")
    maps = first_folder(root, f"panoptic_{split}", f"annotations/panoptic_{split}")
    return Records(records, partial(_read, folder, maps, files), damaged + damage.damaged)


def _segments(row: dict) -> Segments:
    rows = row["segments_info"]
    return Segments(
        int(row["image_id"]),
        text(row, "file_name"),
        np.array([one["id"] for one in rows], np.int32),
        np.array([one["category_id"] for one in rows], np.int16),
        np.array([bool(one.get("iscrowd")) for one in rows], bool),
    )


def _read(folder: Path, maps: Path, files: Mapping[int, tuple[str, tuple[int, int]]], region: Region) -> Example:
    segments = region.segments
    name, size = files[segments.image_id]
    picture = read_picture(folder / name, size)
    ids = segment_ids(maps / segments.file_name, size)
    own = np.isin(segments.categories, region.categories) & ~segments.crowd
    ignore = np.isin(ids, [VOID, *segments.ids[segments.crowd]])
    mask = np.isin(ids, segments.ids[own])
    if not mask.any():
        raise InputError(f"{maps / segments.file_name} lacks the segments of {region.phrase!r}; get it again")
    return Example(region.phrase, mask, picture, ignore=ignore if ignore.any() else None, picture=str(folder / name))


@lru_cache(maxsize=1)
def segment_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The segment of each pixel, int32 [H, W], from a PNG whose colours are their numbers in base 256."""
    colours = np.array(read_image(path)).astype(np.int32)  # [H, W, 3]
    if colours.shape[:2] != tuple(size):
        high, wide = colours.shape[:2]
        raise InputError(f"{path} has {wide}x{high} pixels, but its picture has {size[1]}x{size[0]}; get it again")
    return colours @ np.array([1, 256, 256**2], np.int32)
