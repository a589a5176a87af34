"""Errors meant for people, and the exit statuses of the command line."""

import errno

DONE, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class InputError(ValueError):
    """bad input: one line that says what was wrong, with which value, and what to do"""


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to be quoted in a sentence of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def why(error: Exception) -> str:
    """Why a file could not be read or written, in a few words."""
    if is_disk_full(error):
        return "the disk is full"
    return getattr(error, "strerror", None) or first_line(error)


def is_disk_full(error: Exception) -> bool:
    """Whether Python, or a library that does not say so with an error number, has found no room on a disk."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(
        f"(os error {number})" in str(error) for number in (*full, 112)  # 112 is Windows' own number
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python, a GPU or torch on the CPU has run out of memory."""
    wordings = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in wordings)
    )


def brief(error: Exception) -> str:
    """The kind of an error and what it says, on one line: for a report of a fault."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
