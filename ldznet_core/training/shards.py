"""A folder of safetensors files that together hold what is too much for memory and too slow to compute twice.

Each file is made from its number alone and written whole, so a build that is killed goes on at the first file that is
missing, several processes share a build, and the bytes are the same however it went.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, first_line, why
from ..imaging.files import replacing
from .processes import ALONE, Processes

log = logging.getLogger(__name__)
SHARD_BYTES = 64 * 2**20
OPEN = 8  # shards that are mapped at a time; to map one takes a fraction of a millisecond
SHOW_EVERY = 10  # seconds
STALE = 3600  # seconds after which a file that is not finished is given up
MUCH = 10**9  # bytes on a disk that are told without being asked
LAYOUT = 1


def size(count: float) -> str:
    """Bytes as people write them."""
    units = iter(("bytes", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 1000 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.3g} {unit}"


def tell(line: str, last: bool) -> None:
    """Progress: one line that changes on a terminal, lines of the log elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}" + "\n" * last)
        sys.stderr.flush()
    else:
        log.info(line)


class Shard:
    """One file, mapped: only what is asked for is read. `texts` is what it holds besides tensors."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self.mapped = safe_open(file, "pt")
            self.texts = json.loads(self.mapped.metadata()["texts"])
        except Exception as error:
            raise InputError(f"{file} cannot be read ({first_line(error)}): delete it, and train again") from None

    def row(self, name: str, index: int) -> Tensor:
        return self.mapped.get_slice(name)[index]

    def rows(self, name: str, first: int, end: int) -> Tensor:
        return self.mapped.get_slice(name)[first:end]


class Shards:
    """`count` files in `folder`, all made of what `about` says. `shards[number]` maps a file.

    Keys of `about` are words for errors; "model name" is not compared. Raises InputError where the folder holds
    something else.
    """

    def __init__(self, folder: Path, about: dict[str, object], count: int):
        self.folder, self.count = Path(folder), count
        self.about = json.loads(json.dumps({**about, "layout": LAYOUT}))
        self._check()
        self._mapped = lru_cache(OPEN)(lambda number: Shard(self.file(number)))

    def __getitem__(self, number: int) -> Shard:
        return self._mapped(number)

    def _check(self) -> None:
        """Compare with the folder's about.json, or write it where there is none."""
        path = self.folder / "about.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            try:
                with replacing(path) as unfinished:
                    unfinished.write_text(json.dumps(self.about, indent=1), encoding="utf-8")
            except OSError as error:
                raise InputError(f"nothing can be written into {self.folder} ({why(error)})") from None
            return
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({first_line(error)}): delete the folder") from None
        differ = [key for key in self.about if key != "model name" and known.get(key) != self.about[key]]
        if differ:
            if "model" in differ:
                differ.insert(0, "model name")
            before, now = (", ".join(f"{key} {about.get(key)}" for key in differ) for about in (known, self.about))
            raise InputError(
                f"the cache in {self.folder} was made with {before}, not with {now}: give another folder, or delete it"
            )

    def file(self, number: int) -> Path:
        return self.folder / f"shard-{number:06d}.safetensors"

    def missing(self) -> list[int]:
        return [number for number in range(self.count) if not self.file(number).exists()]

    def build(
        self,
        make: Callable[[int], tuple[dict[str, Tensor], object]],
        what: str,
        needed: int,
        processes: Processes = ALONE,
    ) -> None:
        """Write the files that are missing: `make(number)` gives a file's tensors and its texts.

        Each process makes its part of them, then waits for the others. `what` and `needed`, the bytes of all files
        together, are logged before it begins. Raises InputError where they do not fit on the disk, a file cannot be
        written (the files before it are kept), or the processes do not share the folder.
        """
        missing = self.missing()
        if processes.main:
            for unfinished in self.folder.glob(".*.tmp"):  # of a build that was killed, not of one beside this
                with suppress(FileNotFoundError):
                    if time.time() - unfinished.stat().st_mtime > STALE:
                        unfinished.unlink()
        processes.wait()  # until all have looked
        if not missing:
            return
        free, needed = shutil.disk_usage(self.folder).free, needed * len(missing) // self.count
        if processes.main:
            level = logging.WARNING if needed > MUCH else logging.INFO
            log.log(level, "%s: %s to write into %s, %s free", what, size(needed), self.folder, size(free))
        if needed > free:
            raise InputError(
                f"{what} need {size(needed)} in {self.folder}, but {size(free)} are free: free some, or give a folder "
                "on another disk"
            )
        own = [number for number in missing if number % processes.count == processes.rank]
        started = shown = time.monotonic()
        for done, number in enumerate(own, start=1):
            self.write(number, *make(number))
            now = time.monotonic()
            if processes.main and (now - shown > SHOW_EVERY or done == len(own)):
                left = (now - started) / done * (len(own) - done)
                tell(f"{self.folder.name}: {done} of {len(own)} shards, {left:.0f} s left", last=done == len(own))
                shown = now
        processes.wait()
        if missing := self.missing():
            raise InputError(
                f"{self.file(missing[0])} of another process is not there: give a folder that all machines share"
            )

    def write(self, number: int, tensors: dict[str, Tensor], texts: object) -> None:
        try:
            with replacing(self.file(number)) as unfinished:
                save_file(tensors, unfinished, {"texts": json.dumps(texts)})
        except Exception as error:
            raise InputError(
                f"{self.file(number)} cannot be written ({why(error)}): free some space and start again, what is done "
                "is kept"
            ) from None
