"""File names made of phrases and of other files' names, short enough for the disk and all different."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

NAME_BYTES = 255  # of one name, on nearly every file system


def slug(text: str, limit: int = 40) -> str:
    """A phrase as a part of a file name: lower-case letters and digits of any script, joined by hyphens.

    At most `limit` characters and three times as many bytes, never empty: a phrase without a letter or digit is called
    "phrase".
    """
    kept = []
    for character in unicodedata.normalize("NFKC", text).lower():
        # Marks belong to the letter before them: without its vowel signs Hindi falls apart.
        mark = unicodedata.category(character).startswith("M") and kept and kept[-1] != "-"
        kept.append(character if character.isalnum() or mark else "-")
    name = re.sub("-+", "-", "".join(kept)).strip("-")
    return shorten(name[:limit], 3 * limit).rstrip("-") or "phrase"


def shorten(name: str, room: int) -> str:
    """The beginning of a name that takes at most `room` bytes on disk; at least its first character."""
    while len(name) > 1 and size(name) > room:
        name = name[:-1]
    return name


def size(name: str) -> int:
    """The bytes that a name takes on disk."""
    return len(os.fsencode(name))


def name_bytes(folder: Path) -> int:
    """The most bytes that a name in `folder` may take, which need not exist yet: encrypted ones allow fewer."""
    for existing in (folder, *folder.parents):
        try:
            return min(os.pathconf(existing, "PC_NAME_MAX"), NAME_BYTES)
        except FileNotFoundError:
            continue
        except (AttributeError, OSError, ValueError):  # Windows has no such call
            break
    return NAME_BYTES


def unique_names(names: Iterable[str], reserved: Collection[str] = (), room: int = NAME_BYTES) -> list[str]:
    """The names, each cut to `room` bytes, and all different: later ones get -2, -3, ...

    Names that differ only in case or in how an accent is encoded count as one, because to some file systems they are.
    None is as in `reserved`.
    """
    taken, unique = {*map(_folded, reserved)}, []
    for name in names:
        one, number = shorten(name, room), 2
        while _folded(one) in taken:
            one, number = shorten(name, room - size(f"-{number}")) + f"-{number}", number + 1
        taken.add(_folded(one))
        unique.append(one)
    return unique


def unique_slugs(phrases: Iterable[str], reserved: Collection[str] = ("overlay",)) -> list[str]:
    """One slug a phrase, all different: later ones get -2, -3, ...

    `reserved` names are not used, because `<stem>.overlay.png` is not the mask of an "overlay".
    """
    return unique_names(map(slug, phrases), reserved)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
