"""Phrases: what people write is checked and parted here."""

import re
from collections.abc import Sequence

from ..errors import InputError


def check_phrases(phrases: Sequence[str]) -> list[str]:
    """Phrases stripped of blanks. Raises InputError where there is none or one is empty."""
    if isinstance(phrases, str):
        phrases = [phrases]
    phrases = [p.strip() for p in phrases]
    if not phrases:
        raise InputError("no phrase was given: say what to find, for example 'cat'")
    if not all(phrases):
        raise InputError(f"phrase {phrases.index('') + 1} is empty: say what to find, for example 'cat'")
    return phrases


def split_phrases(text: str) -> list[str]:
    """Phrases of a text that holds one a line, or several in a line as in "cat | red apple"; empty ones are left out.

    Raises InputError where nothing is left.
    """
    return check_phrases([p for p in re.split(r"[\n|]", text) if p.strip()])
