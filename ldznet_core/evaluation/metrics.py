"""Scores of soft masks against true ones, number for number as in the paper's tables.

The protocol is CLIPSeg's `FixedIntervalMetrics`, which LD-ZNet reports its PhraseCut results with, its
quirks kept. This file sees probabilities and masks only: no model, no data set, no resizing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

try:
    from scipy.integrate import simpson
except ImportError:
    raise InputError("scoring masks needs scipy: pip install scipy") from None

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
    """Gathers predictions batch by batch. It keeps sums only, so a data set of any size fits."""

    def __init__(self) -> None:
        self._samples = 0
        self._pooled = np.zeros((3, len(THRESHOLDS)), np.int64)  # TP, FP, FN of all pixels
        self._iou = np.zeros(len(THRESHOLDS))  # sum over samples
        self._iou_at_default = 0.0  # sum over samples

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
        for counts in _confusion(probs.detach(), masks):  # [3, T]
            self._samples += 1
            self._pooled += counts
            self._iou += _iou(counts)
            self._iou_at_default += float(_plain_iou(counts[:, _DEFAULT]))

    def compute(self) -> Scores:
        """Scores of all samples so far. Raises InputError before the first sample."""
        if not self._samples:
            raise InputError("there is nothing to score: no sample was added")
        miou = self._iou / self._samples  # [T]
        best = int(miou.argmax())
        return Scores(
            miou=float(miou[best]),
            iou_fg=float(_iou(self._pooled).max()),
            ap=average_precision(*self._pooled),
            miou_threshold=float(THRESHOLDS[best]),
            iou_at_default=self._iou_at_default / self._samples,
            samples=self._samples,
        )


def average_precision(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> float:
    """Simpson's integral of precision over recall (unevenly spaced) from pooled counts `[T]`, one a threshold.

    Thresholds without a positive are left out and the curve is not extended to recall 0 or 1, so a model
    whose outputs are all confident gets little area: this is CLIPSeg's AP, not detection's.
    """
    some = tp + fp > 0
    precision = tp[some] / (1 + tp[some] + fp[some])
    recall = tp[some] / (1 + tp[some] + fn[some])
    curve = np.unique(np.stack([recall, precision], 1), axis=0)  # sorted by recall, duplicates gone
    return float(simpson(curve[:, 1], x=curve[:, 0])) if len(curve) > 1 else 0.0


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


def _plain_iou(counts: np.ndarray) -> float:
    """Of TP, FP and FN `[3]`, no +1; 1 where nothing is found and there is nothing."""
    union = counts.sum()
    return counts[0] / union if union else 1.0
