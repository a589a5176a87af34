"""The art of the miniature world, as a pack holds it (see pack.py): drawings of things, and backgrounds."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .pack import FORMAT
from .words import CPU_NOUNS


@dataclass(frozen=True, eq=False)
class Sprite:
    """One drawing of one thing, cropped to its content."""

    noun: str
    concept: str
    style: str
    split: str
    group: str
    colour: str | None
    rgba: np.ndarray  # uint8 [h,w,4], straight alpha


@dataclass(frozen=True, eq=False)
class Background:
    """A texture named by its word, or a photo (word "photo")."""

    word: str
    split: str
    rgb: np.ndarray  # uint8 [h,w,3]


@dataclass(frozen=True, eq=False)
class Pack:
    """All sprites (in vocabulary order) and backgrounds of a pack file."""

    sprites: tuple[Sprite, ...]
    backgrounds: tuple[Background, ...]

    def select(self, *, nouns=None, styles=None, splits=None) -> tuple[Sprite, ...]:
        """The sprites that match every given list; None means any."""
        return tuple(
            s
            for s in self.sprites
            if (nouns is None or s.noun in nouns)
            and (styles is None or s.style in styles)
            and (splits is None or s.split in splits)
        )


def load_pack(path) -> Pack:
    """The pack in a file that `ldznet mini build pack` wrote, all images decoded. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no pack at {path}: 'ldznet mini build pack' writes mini-build/world.zip")
    try:
        with zipfile.ZipFile(path) as archive:
            index = json.loads(archive.read("index.json"))
            if index.get("format") != FORMAT:
                raise InputError(
                    f"{path} is a pack of format {index.get('format')!r}, not {FORMAT!r}: "
                    "build it again with 'ldznet mini build pack'"
                )
            fields = ("noun", "concept", "style", "split", "group", "colour")
            sprites = tuple(
                Sprite(**{k: row[k] for k in fields}, rgba=_decode(archive, row["file"], "RGBA"))
                for row in index["sprites"]
            )
            backgrounds = tuple(
                Background(row["word"], row["split"], _decode(archive, row["file"], "RGB"))
                for row in index["backgrounds"]
            )
    except InputError:
        raise
    except Exception as error:  # a damaged zip, JSON or image can raise nearly anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"{path} is not a whole pack ({reason}): build it again with 'ldznet mini build pack'"
        ) from None
    return Pack(sprites, backgrounds)


def _decode(archive: zipfile.ZipFile, name: str, mode: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(archive.read(name))).convert(mode))


def nouns(pack: Pack, count: int) -> tuple[str, ...]:
    """The first count nouns with training sprites: CPU_NOUNS, then the others in vocabulary order."""
    seen = dict.fromkeys(s.noun for s in pack.sprites if s.split == "train")
    order = [n for n in CPU_NOUNS if n in seen] + [n for n in seen if n not in CPU_NOUNS]
    if not 1 <= count <= len(order):
        raise InputError(
            f"{count} nouns asked for, but {len(order)} have training sprites: ask for 1 to {len(order)}"
        )
    return tuple(order[:count])
