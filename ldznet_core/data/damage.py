"""Damaged items of a data set: each is told in one line, counted and skipped; too many are an error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, brief
from .base import Dataset, Example

log = logging.getLogger(__name__)
ALLOWED = 0.1  # share of items that may be damaged
EARLY = 20  # reads after which the share is looked at for the first time


class Damage:
    """Counts the items that were read and those that could not be.

    More than one damaged item in ten is an error, unless they all have the same cause: one missing picture of a small
    data set is skipped, however many phrases it has.
    """

    def __init__(self, name: str = "the data set"):
        self.name = name
        self.read_count = 0
        self.damaged = 0
        self.reasons: dict[str, None] = {}  # the distinct ones, in the order they came up

    def read(self, dataset: Dataset, index: int) -> Example | None:
        """An example, or None where it is damaged. Raises InputError where too many are."""
        example = None
        with self.item():
            example = dataset[index]
        return example

    @contextmanager
    def item(self) -> Iterator[None]:
        """Around the reading of one item: an InputError in the block is logged and counted, not raised."""
        self.read_count += 1
        try:
            yield
        except InputError as error:
            self.damaged += 1
            reason = str(error)
            if reason not in self.reasons:  # training reads an item many times
                self.reasons[reason] = None
                log.warning("skipped: %s", reason)
            if self.read_count >= EARLY:
                # A few reads may be unlucky: until the end of a pass, three standard deviations are granted.
                luck = 3 * (ALLOWED * (1 - ALLOWED) * self.read_count) ** 0.5
                self._refuse_above(ALLOWED * self.read_count + luck)

    @contextmanager
    def row(self, path: Path, number: int | str) -> Iterator[None]:
        """Around the reading of one row of an annotation file: its damage names both; another shape is damage, too."""
        with self.item():
            try:
                yield
            except InputError as error:
                raise InputError(f"{path}, row {number}: {error}") from None
            except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
                raise InputError(f"{path}, row {number} is not what was expected ({brief(error)}); mend it") from None

    def check(self) -> None:
        """At the end of a pass. Raises InputError where more than one item in ten, or every one, was damaged."""
        self._refuse_above(ALLOWED * self.read_count)
        if self.damaged and self.damaged == self.read_count:
            raise InputError(f"nothing of {self.name} can be read: {self._last()}")

    def _refuse_above(self, limit: float) -> None:
        if self.damaged > limit and len(self.reasons) > 1:
            raise InputError(
                f"{self.damaged} of {self.read_count} items of {self.name} are damaged, "
                f"more than one in ten; mend them or get the data again; the last one: {self._last()}"
            )

    def _last(self) -> str:
        return next(reversed(self.reasons))
