"""Scores of soft masks against true ones, number for number as in the paper's tables.

The protocol is CLIPSeg's `FixedIntervalMetrics`, which LD-ZNet reports its PhraseCut results with, its
quirks kept. This file sees probabilities and masks only: no model, no data set, no resizing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

THRESHOLDS = np.linspace(0, 1, 51)[1:-1]  # 0.02, 0.04, ... 0.98; a pixel is positive where p > tau
DEFAULT_THRESHOLD = 0.5
_DEFAULT = int(np.abs(THRESHOLDS - DEFAULT_THRESHOLD).argmin())


@dataclass(frozen=True)
class Scores:
    """What `PhraseMetrics.compute` returns; every score lies in 0..1 (paper section 4, tables 1-3).

    miou: mean over samples of the foreground IoU, at the threshold where that mean is highest.
    iou_fg: foreground IoU of all pixels pooled, at its own best threshold.
    ap: area under the pooled precision-recall curve, over the recalls that the thresholds reach.
    miou_threshold: the threshold at which `miou` was found.
    iou_at_default: mean IoU at threshold 0.5 without the protocol's +1; nothing found where there is
        nothing counts 1.
    samples: how many samples were seen.
    """

    miou: float
    iou_fg: float
    ap: float
    miou_threshold: float
    iou_at_default: float
    samples: int


class PhraseMetrics:
    """Gathers predictions batch by batch; keeps pixel counts only, so a data set of any size fits."""

    def __init__(self) -> None:
        self._counts: list[np.ndarray] = []  # each [N, 3, T]: TP, FP, FN

    def update(self, probs: Tensor, masks: Tensor) -> None:
        """Add N samples. Batches may differ in size and resolution.

        probs: `[N, H, W]` float in 0..1. masks: `[N, H, W]` bool, true on the object.
        Raises InputError where shapes or types differ from these or a probability is not a number.
        """
        if probs.ndim != 3 or probs.shape != masks.shape:
            raise InputError(
                "metrics need probabilities and masks of one shape [N, H, W], "
                f"got {list(probs.shape)} and {list(masks.shape)}"
            )
        if not probs.is_floating_point() or masks.dtype != torch.bool:
            raise InputError(
                f"metrics need float probabilities and bool masks, got {probs.dtype} and {masks.dtype}"
            )
        if probs.isnan().any():
            raise InputError("metrics got a probability that is not a number (NaN)")
        self._counts.append(_confusion(probs.detach(), masks))

    def compute(self) -> Scores:
        """Scores of all samples so far. Raises InputError before the first sample."""
        if not sum(map(len, self._counts)):
            raise InputError("there is nothing to score: no sample was added")
        counts = np.concatenate(self._counts)  # [N, 3, T]
        pooled = counts.sum(0)  # [3, T]
        miou = _iou(counts).mean(0)  # [T]
        best = int(miou.argmax())
        return Scores(
            miou=float(miou[best]),
            iou_fg=float(_iou(pooled).max()),
            ap=average_precision(*pooled),
            miou_threshold=float(THRESHOLDS[best]),
            iou_at_default=float(_native_iou(counts[..., _DEFAULT]).mean()),
            samples=len(counts),
        )


def average_precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> float:
    """Simpson's integral of precision over recall from pooled counts `[T]`, one a threshold.

    Thresholds without a positive are left out and the curve is not extended to recall 0 or 1, so a model
    whose outputs are all confident gets little area: this is CLIPSeg's AP, not detection's.
    """
    some = tp + fp > 0
    precision = tp[some] / (1 + tp[some] + fp[some])
    recall = tp[some] / (1 + tp[some] + fn[some])
    curve = np.unique(np.stack([recall, precision], 1), axis=0)  # sorted by recall, duplicates gone
    return simpson(curve[:, 1], curve[:, 0])


def simpson(y: np.ndarray, x: np.ndarray) -> float:
    """Composite Simpson's rule for samples `y` `[N]` at ascending, unevenly spaced `x` `[N]`.

    An even number of samples gets Cartwright's correction for the last interval, as in SciPy >= 1.11.
    Coinciding `x` add no area; fewer than two samples have none.
    """
    if len(x) < 2:
        return 0.0
    h = np.diff(x)
    if len(x) == 2:
        return float(h[0] * (y[0] + y[1]) / 2)

    odd = len(x) - (len(x) % 2 == 0)
    h0, h1 = h[0 : odd - 1 : 2], h[1 : odd - 1 : 2]
    y0, y1, y2 = y[0 : odd - 2 : 2], y[1 : odd - 1 : 2], y[2:odd:2]
    span = h0 + h1
    weighted = y0 * (2 - _ratio(h1, h0)) + y1 * _ratio(span**2, h0 * h1) + y2 * (2 - _ratio(h0, h1))
    area = (span / 6 * weighted).sum()

    if odd != len(x):
        a, b = h[-2:]
        area += (
            y[-1] * _ratio(2 * b**2 + 3 * a * b, 6 * (a + b))
            + y[-2] * _ratio(b**2 + 3 * a * b, 6 * a)
            - y[-3] * _ratio(b**3, 6 * a * (a + b))
        )
    return float(area)


def _confusion(probs: Tensor, masks: Tensor) -> np.ndarray:
    """Pixel counts `[N, 3, T]` (TP, FP, FN) from one histogram a sample instead of one pass a threshold."""
    # The probabilities' own precision, as in `p > tau` with a plain number: 0.3 in float32 is not above 0.3.
    edges = torch.as_tensor(THRESHOLDS, dtype=probs.dtype, device=probs.device)
    cleared = torch.bucketize(probs.contiguous(), edges)  # [N, H, W], how many thresholds lie below p
    samples, bins = len(probs), len(THRESHOLDS) + 1
    cell = torch.arange(samples, device=probs.device)[:, None, None] * 2 + masks
    histogram = torch.bincount((cell * bins + cleared).flatten(), minlength=samples * 2 * bins)
    histogram = histogram.view(samples, 2, bins).cpu().numpy()  # [N, (off, on), T + 1]
    positive = histogram[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]  # [N, (off, on), T]
    fp, tp = positive[:, 0], positive[:, 1]
    fn = histogram[:, 1].sum(-1, keepdims=True) - tp
    return np.stack([tp, fp, fn], 1)


def _iou(counts: np.ndarray) -> np.ndarray:
    """`[..., 3, T]` -> `[..., T]`, with the protocol's +1: a perfect mask of 9 pixels scores 0.9."""
    return counts[..., 0, :] / (1 + counts.sum(-2))


def _native_iou(counts: np.ndarray) -> np.ndarray:
    """`[N, 3]` -> `[N]`, no +1."""
    union = counts.sum(-1)
    return np.where(union == 0, 1.0, counts[:, 0] / np.maximum(union, 1))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.where(b == 0, 0.0, a / np.where(b == 0, 1.0, b))
