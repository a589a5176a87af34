"""A folder of your own: pictures, and a mask for each phrase.

Either by names: `images/NAME.jpg` with `masks/NAME/PHRASE.png` or `masks/NAME__PHRASE.png`. Or by a list: `masks.jsonl`
or `annotations.jsonl`, one {"image": ..., "phrase": ..., "mask": ...} a line; see docs/data.md.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

from ..errors import InputError
from ..imaging.images import to_rgb, upright
from .annotations import Packed, outlined, packed
from .base import Example
from .damage import Damage
from .records import Records, grouped, picture_fault, read_text, text

LISTS = ("masks.jsonl", "annotations.jsonl")
KEYS = {"image", "phrase", "mask", "polygons", "caption", "split"}
SPLITS = ("train", "val", "test")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
IGNORED = (127, 129)  # greys of a mask that are neither the thing nor the background
HELD_OUT = 10  # one picture in so many is for validation


class Row(NamedTuple):
    """One phrase in one picture. Without mask the phrase is absent."""

    image: str
    phrase: str
    mask: str | Packed | None
    caption: str = ""
    split: str = ""


def folder(root: Path, split: str = "train") -> Records:
    """The examples of "train", "val", "test" or "all"; the phrases of a picture stand in a row.

    Where the list says no splits, one picture in ten is held out for "val" and "test", by a hash of its name. Raises
    InputError where the folder is laid out in another way or the split is empty.
    """
    if split not in (*SPLITS, "all"):
        raise InputError(f"{root} has no split {split!r}; it has {', '.join(SPLITS)} and all")
    damage = Damage(str(root))
    path = next((root / name for name in LISTS if (root / name).is_file()), None)
    rows = list(_listed(path, damage) if path else _named(root, damage))
    damage.check()
    if not rows:
        raise InputError(
            f"{root} holds no masks: looked for masks.jsonl, annotations.jsonl, masks/NAME/PHRASE.png and "
            "masks/NAME__PHRASE.png with images/NAME.png"
        )
    records = grouped(rows, lambda row: row.image)
    if split != "all":
        records = _of_split(records, split)
    if not records:
        raise InputError(f'{root} has no examples for {split}; mark some of its rows with "split": "{split}"')
    return Records(records, partial(_read, root), damage.damaged)


def _of_split(rows: list[Row], split: str) -> list[Row]:
    """The rows of a split; those of "val" serve as "test" where none are marked so."""
    marked = {row.split for row in rows}
    if marked != {""}:
        wanted = split if split in marked or split != "test" else "val"
        return [row for row in rows if (row.split or "train") == wanted]
    codes = {row.image: crc32(row.image.encode()) for row in rows}
    held_out = {image for image, code in codes.items() if code % HELD_OUT == 0} or {min(codes, key=codes.get)}
    if split == "train" and len(codes) > len(held_out):
        return [row for row in rows if row.image not in held_out]
    return [row for row in rows if row.image in held_out]


def _listed(path: Path, damage: Damage) -> Iterator[Row]:
    """The rows of a list, one a line."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = None
            with damage.row(path, number):
                row = _row(json.loads(line))
            if row:
                yield row


def _row(fields: dict) -> Row:
    if not isinstance(fields, dict):
        raise InputError('expected {"image": ..., "phrase": ..., "mask": ...}')
    image, phrase = text(fields, "image"), text(fields, "phrase")
    polygons, split = fields.get("polygons"), fields.get("split")
    mask: str | Packed | None = packed(polygons) if polygons else None
    if fields.get("mask") is not None:
        mask = text(fields, "mask")
    unknown = sorted(set(fields) - KEYS)
    if unknown and not {"mask", "polygons"} & set(fields):
        # Without a mask the phrase counts as absent, which must not happen by a slip.
        raise InputError(f'there is no mask, but a key {unknown[0]!r}; write "mask": null for an absent phrase')
    if split not in (None, *SPLITS):
        raise InputError(f'"split" is {split!r}; it must be one of {", ".join(SPLITS)}')
    return Row(image, phrase, mask, str(fields.get("caption") or ""), split or "")


def _named(root: Path, damage: Damage) -> Iterator[Row]:
    """The rows that file names tell. A picture without masks has none."""
    masks, home = root / "masks", root / "images" if (root / "images").is_dir() else root
    pictures: dict[str, list[Path]] = {}
    for file in _pictures(home):
        pictures.setdefault(file.stem, []).append(file)
    pairs = [(mask.parent.name, mask.stem, mask) for folder in _entries(masks) for mask in _pictures(folder)]
    pairs += [(*mask.stem.rpartition("__")[::2], mask) for mask in _pictures(masks) if "__" in mask.stem]
    for name, phrase, mask in sorted(pairs):
        with damage.item():
            files = pictures.get(name, [])
            if not files:
                raise InputError(f"{mask} has no picture: {home} holds no {name}.png or .jpg")
            if len(files) > 1:
                raise InputError(
                    f"{mask} has several pictures, {files[0]} and {files[1].name}; rename one with its masks"
                )
            phrase = phrase if " " in phrase else phrase.replace("-", " ").replace("_", " ").strip()
            if not phrase:
                raise InputError(f"{mask} names no phrase; call it {name}__PHRASE.png")
            yield Row(files[0].relative_to(root).as_posix(), phrase, mask.relative_to(root).as_posix())


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden files left out; nothing where there is no such folder."""
    return sorted(f for f in folder.iterdir() if not f.name.startswith(".")) if folder.is_dir() else []


def _pictures(folder: Path) -> list[Path]:
    return [file for file in _entries(folder) if file.suffix.lower() in PICTURES and file.is_file()]


def _read(root: Path, row: Row) -> Example:
    path = root / row.image
    if not path.is_file() and (root / "images" / row.image).is_file():
        path = root / "images" / row.image
    outline = [] if row.mask is None or isinstance(row.mask, str) else [row.mask]
    example = outlined(row.phrase, path, None, outline)
    if isinstance(row.mask, str):
        mask, ignore = read_mask(root / row.mask, example.mask.shape)
        example = replace(example, mask=mask, ignore=ignore)
    return replace(example, caption=row.caption)


def read_mask(path: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """A mask of `size` (height, width) from a picture of any mode, and the pixels to ignore, both bool [H, W].

    Light is the thing, dark and transparent the background, grey 127 to 129 is ignored. A mask of zeros and ones will
    do, too. The second is None where nothing is ignored. Raises InputError for a mask of another size.
    """
    try:
        with Image.open(path) as image:
            image.load()
            image = upright(image)
            if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            grey = np.array(to_rgb(image).convert("L"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such mask") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise InputError(f"{path} cannot be read as a mask ({picture_fault(error)}); save it again") from None
    if grey.shape != tuple(size):
        is_now, should = (f"{wide}x{high}" for high, wide in (grey.shape, size))
        raise InputError(f"{path} has {is_now} pixels, but its picture has {should}; save it in that size")
    if grey.max(initial=0) == 1:
        return grey == 1, None
    ignore = (grey >= IGNORED[0]) & (grey <= IGNORED[1])
    return grey > IGNORED[1], ignore if ignore.any() else None
