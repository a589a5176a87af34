"""Scores of masks as people get them: cut at 0.5, at the size of the picture, with phrases that name nothing.

Referring-expression benchmarks score such masks. The best threshold of `metrics` plays no part here, so the two kinds
of IoU must not be compared.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError

EMPTY = 50  # pixels: a mask of fewer counts as empty, as in gRefCOCO's evaluation
PRECISION_AT = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class NativeScores:
    """Every score lies in 0..1; None where the data set holds nothing that it is about.

    native_miou: mean IoU over phrases that name something.
    native_ciou: cumulative IoU: all intersections over all unions; what is marked for absent phrases counts as union.
    pr50, pr70, pr90: share of phrases that name something whose IoU is above 0.5, 0.7, 0.9.
    giou: mean IoU over all phrases, where an absent phrase counts 1 if its mask is empty, else 0.
    n_acc: share of absent phrases whose mask is empty.
    t_acc: share of phrases that name something whose mask is not empty.
    """

    native_miou: float | None
    native_ciou: float | None
    pr50: float | None
    pr70: float | None
    pr90: float | None
    giou: float | None
    n_acc: float | None
    t_acc: float | None


class NativeMetrics:
    """Gathers masks one by one. It keeps sums only."""

    def __init__(self) -> None:
        self._named = self._absent = self._intersection = self._union = 0
        self._iou = 0.0
        self._above = np.zeros(len(PRECISION_AT), np.int64)
        self._empty_absent = self._filled_named = 0

    def update(self, found: np.ndarray, truth: np.ndarray) -> None:
        """Add a mask and the true one, bool [H, W] at the size of the picture; a true mask of no pixel is that of an
        absent phrase. Raises InputError where shapes or types differ from these."""
        if found.shape != truth.shape or found.dtype != bool or truth.dtype != bool:
            raise InputError(
                "native metrics need bool masks of one shape [H, W], "
                f"got {found.dtype} {[*found.shape]} and {truth.dtype} {[*truth.shape]}"
            )
        intersection, union = int((found & truth).sum()), int((found | truth).sum())
        filled = int(found.sum()) >= EMPTY
        self._intersection += intersection
        self._union += union
        if truth.any():
            self._named += 1
            self._iou += intersection / union
            self._above += intersection / union > np.array(PRECISION_AT)
            self._filled_named += filled
        else:
            self._absent += 1
            self._empty_absent += not filled

    def compute(self) -> NativeScores:
        """Scores of all masks so far."""
        phrases = self._named + self._absent
        pr50, pr70, pr90 = (_share(float(above), self._named) for above in self._above)
        return NativeScores(
            native_miou=_share(self._iou, self._named),
            native_ciou=_share(self._intersection, self._union),
            pr50=pr50,
            pr70=pr70,
            pr90=pr90,
            giou=_share(self._iou + self._empty_absent, phrases) if self._absent else None,
            n_acc=_share(self._empty_absent, self._absent),
            t_acc=_share(self._filled_named, self._named) if self._absent else None,
        )


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
