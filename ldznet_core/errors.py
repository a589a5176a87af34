"""Errors meant for people."""


class InputError(ValueError):
    """bad input: one line that says what was wrong, with which value, and what to do"""


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to be quoted in a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
