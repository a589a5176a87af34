"""Which picture files a command is to read, named one by one, by a folder, by a pattern or in a list; and files read
ahead of the work."""

import glob
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..errors import InputError, why

AHEAD = 2  # files that wait in memory: few, because a picture may take half a gigabyte

Item, Content = TypeVar("Item"), TypeVar("Content")

# What is taken from a folder; a file named by itself may have any suffix.
SUFFIXES = frozenset(
    ".avif .bmp .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


def find_pictures(names: Iterable[str], out: Path) -> tuple[list[Path], list[str]]:
    """The picture files that names stand for, and one sentence for each name that stands for none.

    A folder stands for the pictures in it (not for those in its folders or hidden ones), a pattern such as `*.png`
    for the files that match it. What several folders and patterns find is taken once. Any other name is taken as it
    is, whether there is such a file or not: the error comes when it is read. `out` is where results go.
    """
    pictures: list[Path] = []
    problems: list[str] = []
    known: set[str] = set()
    for name in names:
        try:
            if os.path.isdir(name):
                found = [file for file in in_folder(Path(name), out) if os.path.abspath(file) not in known]
            elif glob.has_magic(name) and not os.path.lexists(name):
                found = [file for file in matching(name) if os.path.abspath(file) not in known]
            else:
                found = [Path(name)]
        except InputError as error:
            problems.append(str(error))
            continue
        pictures += found
        known.update(map(os.path.abspath, found))
    return pictures, problems


def in_folder(folder: Path, out: Path) -> list[Path]:
    """The pictures in a folder, in the order of their names. Raises InputError where there are none."""
    if folder.resolve() == out.resolve():
        raise InputError(f"{folder}: masks are written into this folder, too, and would be taken for pictures the next "
                         "time; choose another --out")
    try:
        files = sorted(file for file in folder.iterdir() if is_picture(file))
    except OSError as fault:
        raise InputError(f"{folder}: this folder cannot be read ({why(fault)})") from None
    if not files:
        raise InputError(f"{folder}: there is no picture in this folder (no .png, .jpg, .webp, ...)")
    return files


def is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def matching(pattern: str) -> list[Path]:
    """The files that match a pattern, in order. Raises InputError where there are none."""
    files = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(file)]
    if not files:
        raise InputError(f"{pattern}: no file matches this pattern")
    return files


def read_list(file: str) -> list[str]:
    """The names in a text file, one a line; `-` is standard input. Raises InputError where it cannot be read."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as fault:
        raise InputError(f"--list {file}: this file cannot be read ({why(fault)})") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # what PowerShell writes
        text = data.decode("utf-16", "replace")
    else:
        text = data.removeprefix(b"\xef\xbb\xbf").decode(sys.getfilesystemencoding(), "surrogateescape")
    if "\0" in text:
        raise InputError(f"--list {file}: this is no text file; it should have the path of a picture on each line")
    names = [line.strip("\r") for line in text.split("\n")]
    return [name for name in names if name.strip()]


def read_ahead(read: Callable[[Item], Content], items: Iterable[Item]) -> Iterator[tuple[Item, Future[Content]]]:
    """Each item with what `read` gives of it, in order, read by other threads while the caller works on those before.
    What `read` raises is raised by `result()` of its own item."""
    waiting: deque[tuple[Item, Future[Content]]] = deque()
    pool = ThreadPoolExecutor(AHEAD)
    try:
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
