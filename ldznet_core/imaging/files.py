"""Files that are written whole or not at all."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` when the block ends; missing folders are made.

    Where the block fails, the file is removed and `path` stays as it was. Raises OSError where nothing can be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a file can be renamed in one step only within one file system.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # what the user's umask gives; safetensors would let nobody else read
        yield unfinished
        unfinished.chmod(mode)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike, before: float) -> None:
    """Removes what a killed process left in a folder: files of `replacing` last changed before that time, in seconds
    since 1970. Those of processes that still write are newer."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # another process may have finished or removed it
                if UNFINISHED.fullmatch(entry.name) and entry.stat().st_mtime < before:
                    os.unlink(entry)
