"""What the loaders share: a data set of light records, and readers of the files that data sets come in."""

import json
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from ..errors import InputError, why
from ..imaging.images import read_image
from .base import Example
from .damage import Damage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Records:
    """A data set that keeps one light record an example. `read` opens the record's files when the example is asked for.

    `damaged` counts what of the annotation files could not be read and was skipped.
    """

    records: Sequence[Any]
    read: Callable[[Any], Example]
    damaged: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return self.read(self.records[index])


@lru_cache(maxsize=1)
def read_picture(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture as uint8 [H, W, 3]; the last one is kept, because its other phrases come next. Do not write to it.

    Raises InputError where there is none, or where its (height, width) is not `size`.
    """
    picture = np.array(read_image(path))
    if size is not None and picture.shape[:2] != tuple(size):
        is_now, should = (f"{wide}x{high}" for high, wide in (picture.shape[:2], size))
        raise InputError(f"{path} has {is_now} pixels, but its annotations are for {should}; get the picture again")
    return picture


def picture_fault(error: Exception) -> str:
    """Why a mask or label map could not be read, in a few words without its name."""
    return "it is no picture" if isinstance(error, UnidentifiedImageError) else why(error)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputError where it cannot be read or is empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; is {path.parent} the folder of the data set?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({why(error)}); get it again") from None
    if not text.strip():
        raise InputError(f"{path} is empty; get it again")
    return text


GAP = re.compile(r"[\s,]*")
COLON = re.compile(r"\s*:\s*")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON list, with the key ""; or of all lists in a JSON object, with the keys of their lists.

    One at a time: annotation files of a gigabyte, all of it in Python's objects, would need many times their size.
    Raises InputError where the file is missing, empty, cut short or no list or object.
    """
    text = read_text(path)
    decode = json.JSONDecoder().raw_decode
    at = GAP.match(text).end()
    if text[at] not in "[{":
        raise InputError(f"{path} holds neither a list nor an object; get it again")

    def elements(key: str) -> Iterator[tuple[str, Any]]:
        nonlocal at
        at = GAP.match(text, at + 1).end()
        while text[at] != "]":
            row, at = decode(text, at)
            yield key, row
            at = GAP.match(text, at).end()
        at += 1

    try:
        if text[at] == "[":
            yield from elements("")
            return
        at = GAP.match(text, at + 1).end()
        while text[at] != "}":
            key, at = decode(text, at)
            at = COLON.match(text, at).end()
            if text[at] == "[":
                yield from elements(key)
            else:
                _, at = decode(text, at)
            at = GAP.match(text, at).end()
    except (ValueError, IndexError, AttributeError):  # the last where there is no colon
        raise InputError(f"{path} is damaged or cut short at character {at}; get it again") from None


def read_rows(path: Path, readers: Mapping[str, Callable[[Any], None]]) -> int:
    """Hand each row of the lists in a JSON file to the reader of its list (see `json_rows`), and count damaged rows.

    Raises InputError where more than one in ten of a list is damaged, or one of the lists is empty or not there.
    """
    log.info("reading %s", path)
    tallies = {key: Damage(f"{path} ({key})" if key else str(path)) for key in readers}
    for number, (key, row) in enumerate(json_rows(path), start=1):
        if key in readers:
            with tallies[key].row(path, number):
                readers[key](row)
    for key, tally in tallies.items():
        tally.check()
        if not tally.read_count:
            what = f'no list "{key}" with rows in it' if key else "no list with rows in it"
            raise InputError(f"{path} holds {what}; is it the right file of the data set?")
    return sum(tally.damaged for tally in tallies.values())


def text(row: Any, key: Any) -> str:
    """The text of a row under a key. Raises InputError where it is no text, is blank or has several lines."""
    value = row[key]
    if not isinstance(value, str) or len(value.strip().splitlines()) != 1:
        raise InputError(f'"{key}" must be a text of one line, not {value!r:.40}')
    return value.strip()


def grouped(rows: Iterable[Any], key: Callable[[Any], Hashable]) -> list[Any]:
    """The rows with those of one key in a row, in the order in which the keys came up."""
    groups: dict[Hashable, list[Any]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return [row for group in groups.values() for row in group]


def first_file(root: Path, *names: str) -> Path:
    """The first of these files that is there. Raises InputError where none is."""
    return _first(root, names, Path.is_file, "file")


def first_folder(root: Path, *names: str) -> Path:
    """The first of these folders that is there. Raises InputError where none is."""
    return _first(root, names, Path.is_dir, "folder")


def picture_folder(images: str, root: Path, *names: str) -> Path:
    """The folder `images`, or where that is "" the first of `names` in `root`.

    Raises InputError where there is none.
    """
    if images and not Path(images).expanduser().is_dir():
        raise InputError(f"{images}: there is no such folder of pictures")
    return Path(images).expanduser() if images else first_folder(root, *names)


def _first(root: Path, names: Sequence[str], there: Callable[[Path], bool], what: str) -> Path:
    for name in names:
        if there(root / name):
            return root / name
    raise InputError(f"{root} has no {what} {' or '.join(names)}; give the folder that the data set was unpacked into")
