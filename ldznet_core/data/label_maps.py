"""Pictures of which every pixel has the number of a class: what the data sets made of them share."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError, why
from ..imaging.files import replacing
from .base import Example
from .damage import Damage
from .records import Records, picture_fault, read_picture

log = logging.getLogger(__name__)
INDEX = "classes_in_pictures.json"  # beside the maps: which values each one holds
DIVIDED = ("wall", "floor", "ceiling")  # what COCO divides by materials


class Region(NamedTuple):
    """A phrase in a picture, and the values that its pixels have in the map."""

    map: Path
    phrase: str
    values: tuple[int, ...]


def label_map_records(
    name: str, maps: Path, pictures: Path, phrases: Mapping[str, tuple[int, ...]], void: int
) -> Records:
    """One example for each phrase of which a map has a value. Pixels of the value `void` are ignored.

    Raises InputError where there are no maps or too many are damaged.
    """
    damage, records = Damage(name), []
    files = sorted(maps.glob("*[0-9].png"))  # others are made by training code, such as *_labelTrainIds.png
    if not files:
        raise InputError(f"{maps} holds no .png; unpack the label maps there")
    known = {value for values in phrases.values() for value in values} | {void}
    for file, values in zip(files, classes_in(files), strict=True):
        with damage.item():
            if isinstance(values, InputError):
                raise values
            unknown = set(values) - known
            if unknown:
                raise InputError(f"{file} holds the class {min(unknown)}, which has no name; get it again")
            records += [Region(file, phrase, own) for phrase, own in phrases.items() if not set(own).isdisjoint(values)]
    damage.check()
    return Records(records, partial(_read, pictures, void), damage.damaged)


def classes_in(files: Sequence[Path]) -> list[list[int] | InputError]:
    """The values that each map holds, or why it cannot be read.

    Maps are read once: the result lies in a file beside them, where that can be written, and what it says of a map is
    used until the map changes.
    """
    index = files[0].parent / INDEX
    known, result = _known(index), {}
    states = {file: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    new = [file for file in files if known.get(file.name, [])[:2] != states[file]]
    if new:
        log.info("reading %d label maps of %s once", len(new), index.parent)
        with ThreadPoolExecutor() as pool:
            result = dict(zip(new, pool.map(_values, new), strict=True))
        known |= {file.name: [*states[file], v] for file, v in result.items() if isinstance(v, list)}
        try:
            with replacing(index) as unfinished:
                unfinished.write_text(json.dumps(known), encoding="utf-8")
        except OSError as error:
            log.info("%s cannot be written (%s), so the label maps will be read again next time", index, why(error))
    return [result[file] if file in result else known[file.name][2] for file in files]


def _known(index: Path) -> dict[str, list]:
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        return {name: [int(size), int(time), list(map(int, v))] for name, (size, time, v) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # then it is written anew
        return {}


def _values(path: Path) -> list[int] | InputError:
    try:
        return np.flatnonzero(np.bincount(read_map.__wrapped__(path).ravel())).tolist()
    except InputError as error:
        return error


@lru_cache(maxsize=1)
def read_map(path: Path) -> np.ndarray:
    """The map in a PNG file, of 0 to 65535, as [H, W]. Raises InputError where there is none."""
    try:
        with Image.open(path) as image:
            labels = np.array(image)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such label map") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise InputError(f"{path} cannot be read as a label map ({picture_fault(error)}); get it again") from None
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 65535:
        raise InputError(f"{path} is no label map, which is a grey or palette picture; get it again")
    return labels


def _read(pictures: Path, void: int, region: Region) -> Example:
    labels = read_map(region.map)
    path = pictures / f"{region.map.stem}.jpg"
    picture = read_picture(path, labels.shape)
    ignore = labels == void
    mask = np.isin(labels, region.values)
    return Example(region.phrase, mask, picture, ignore=ignore if ignore.any() else None, picture=str(path))


def phrases_of(names: Iterable[tuple[int, str]]) -> dict[str, tuple[int, ...]]:
    """Phrases and the classes that each one covers, from the classes' numbers and names; like names make one phrase.

    COCO calls a brick wall "wall-brick" and other walls "wall-other": "brick wall" is the first, "wall" is both.
    """
    phrases: dict[str, list[int]] = {}
    for number, name in names:
        general, _, special = name.removesuffix("-merged").removesuffix("-stuff").partition("-")
        special = special.removesuffix("other")
        own = [f"{special} {general}", general] if general in DIVIDED and special else [f"{general} {special}"]
        for phrase in own:
            phrases.setdefault(" ".join(phrase.replace("_", " ").split()), []).append(number)
    return {phrase: tuple(numbers) for phrase, numbers in phrases.items()}
