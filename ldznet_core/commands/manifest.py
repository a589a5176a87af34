"""What `ldznet segment` has done, kept in its output folder, so that a run can be resumed.

Each worker appends to a file of its own, a line of JSON for each picture whose files are all there.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, why

PART = re.compile(r"\.manifest\.(\d+)\.jsonl")


def version(picture: Path) -> list[int] | None:
    """Size and time of change of a file, which tell whether it is still the same; None where it cannot be read."""
    try:
        state = picture.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


@dataclass(frozen=True)
class Manifest:
    """The pictures done in `folder`, as worker number `rank` sees and continues them; `settings` are the options that
    masks depend on, as JSON has them."""

    folder: Path
    settings: Mapping[str, Any]
    rank: int = 0

    def parts(self) -> dict[int, Path]:
        """The files of all workers, those of earlier runs among them, by the worker's number."""
        try:
            names = [(PART.fullmatch(name), name) for name in os.listdir(self.folder)]
        except FileNotFoundError:
            return {}
        except OSError as fault:
            raise InputError(f"{self.folder}: this folder cannot be read ({why(fault)})") from None
        return {int(match[1]): self.folder / name for match, name in names if match}

    def clear(self, workers: int) -> None:
        """Forgets what earlier runs did: each of the workers its own part, the first those that none of them owns."""
        for rank, part in self.parts().items():
            if rank == self.rank or (self.rank == 0 and rank >= workers):
                part.unlink(missing_ok=True)

    def done(self) -> dict[str, tuple[str, list[int]]]:
        """The picture (its absolute path and its version) that the files of each name were last made of.

        Raises InputError where the last picture was done with other settings.
        """
        entries = sorted(
            (entry for part in self.parts().values() for entry in read(part)), key=lambda entry: entry["time"]
        )
        if entries:
            self.check_settings(entries[-1]["settings"])
        return {
            entry["name"]: (entry["picture"], entry["version"])
            for entry in entries
            if entry["settings"] == self.settings
        }

    def check_settings(self, earlier: Mapping[str, Any]) -> None:
        options = sorted({*earlier, *self.settings})
        changed = [
            f"--{name} was {json.dumps(earlier.get(name))} and is {json.dumps(self.settings.get(name))}"
            for name in options
            if earlier.get(name) != self.settings.get(name)
        ]
        if changed:
            raise InputError(
                f"--resume cannot go on in {self.folder}, whose masks were made with other options "
                f"({', '.join(changed)}): use the same, or leave --resume out to do all pictures anew"
            )

    def add(self, name: str, picture: Path, version: list[int] | None, result: Mapping[str, Any]) -> None:
        """Records that the files called `name` are made of that version of a picture. Raises InputError where that
        cannot be written."""
        entry = {
            "name": name, "picture": os.path.abspath(picture), "version": version, "time": time.time(),
            "settings": self.settings, "result": result,
        }  # fmt: skip
        part = self.folder / f".manifest.{self.rank}.jsonl"
        try:
            with part.open("ab+", buffering=0) as file:  # one write: a line is whole, or torn only at its end
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - 1, 0))
                torn = size and file.read(1) != b"\n"
                file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")
        except OSError as fault:
            raise InputError(f"cannot write {part} ({why(fault)}); free space there or choose another --out") from fault


def read(part: Path) -> list[dict[str, Any]]:
    """The entries of one part without their results; lines that were torn, by a kill or a full disk, are left out."""
    entries = []
    with part.open("rb") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
                entries.append({key: entry[key] for key in ("name", "picture", "version", "time", "settings")})
            except (ValueError, KeyError, TypeError):
                continue
    return entries
