import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import simpson, trapezoid

from ldznet_core.errors import InputError
from ldznet_core.evaluation.metrics import THRESHOLDS, PhraseMetrics, average_precision


def score(*batches):
    metrics = PhraseMetrics()
    for probs, masks in batches:
        metrics.update(torch.tensor(probs), torch.tensor(masks, dtype=torch.bool))
    return metrics.compute()


def test_thresholds_are_the_papers_49():
    assert len(THRESHOLDS) == 49
    assert THRESHOLDS[[0, 24, 48]] == pytest.approx([0.02, 0.5, 0.98])


def test_a_perfect_mask_loses_only_the_plus_one():
    scores = score(([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]], [[[1, 1, 1], [0, 0, 0]]]))
    assert scores.miou == 3 / 4
    assert scores.iou_fg == 3 / 4
    assert scores.iou_at_default == 1.0
    assert scores.miou_threshold == pytest.approx(0.02)
    assert scores.ap == 0.0  # one point of the curve encloses no area
    assert scores.samples == 1


def test_an_all_zero_prediction_scores_zero():
    scores = score(([[[0.0, 0.0]]], [[[1, 1]]]))
    assert (scores.miou, scores.iou_fg, scores.ap, scores.iou_at_default) == (0, 0, 0, 0)


def test_nothing_found_where_there_is_nothing_is_right_only_for_the_native_iou():
    scores = score(([[[0.1, 0.3]]], [[[0, 0]]]))
    assert scores.iou_at_default == 1.0
    assert scores.miou == 0.0


def test_something_found_where_there_is_nothing_is_wrong():
    assert score(([[[0.9, 0.3]]], [[[0, 0]]])).iou_at_default == 0.0


def test_the_best_threshold_is_shared_by_all_samples():
    # tau < 0.4: 1/2 and 2/4;  0.4 <= tau < 0.6: 1/2 and 2/3;  0.6 <= tau: 0 and 2/3 up to 0.9
    probs = [[[0.6, 0.0, 0.0]], [[0.9, 0.9, 0.4]]]
    masks = [[[1, 0, 0]], [[1, 1, 0]]]
    scores = score((probs, masks))
    assert scores.miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.miou_threshold == pytest.approx(0.40)
    assert scores.iou_fg == pytest.approx(3 / 4)
    assert scores.iou_at_default == 1.0


def test_a_probability_on_the_threshold_is_not_positive():
    scores = score(([[[0.5, 0.5]]], [[[0, 0]]]))
    assert scores.iou_at_default == 1.0


def test_average_precision_by_hand():
    # two thresholds with positives: (recall 1/4, precision 1/2) and (recall 2/4, precision 2/4)
    tp, fp, fn = np.array([2, 1, 0]), np.array([1, 0, 0]), np.array([1, 2, 3])
    assert average_precision(tp, fp, fn) == pytest.approx((1 / 2 - 1 / 4) * 1 / 2)


def test_batches_may_come_in_any_order_and_size():
    generator = torch.Generator().manual_seed(0)
    probs, masks = torch.rand(6, 5, 7, generator=generator), torch.rand(6, 5, 7, generator=generator) > 0.6
    whole, parts = PhraseMetrics(), PhraseMetrics()
    whole.update(probs, masks)
    for part in ([4, 5], [0], [3, 1, 2]):
        parts.update(probs[part], masks[part])
    assert whole.compute().__dict__ == pytest.approx(parts.compute().__dict__, abs=1e-12)


def test_counts_agree_with_one_pass_a_threshold():
    generator = torch.Generator().manual_seed(1)
    probs = (torch.rand(4, 9, 8, generator=generator) * 50).round() / 50  # many values on a threshold
    masks = torch.rand(4, 9, 8, generator=generator) > 0.5
    miou = []
    for tau in THRESHOLDS.tolist():
        hit = probs > tau
        tp, union = (hit & masks).sum((1, 2)), (hit | masks).sum((1, 2))
        miou.append((tp.double() / (1 + union)).mean().item())
    metrics = PhraseMetrics()
    metrics.update(probs, masks)
    assert metrics.compute().miou == pytest.approx(max(miou))


def test_average_precision_is_simpsons_rule_over_uneven_recalls():
    # recalls 1/4, 2/4, 3/4 and precisions 1/2, 2/3, 3/4: evenly spaced, so (b - a) / 6 * (y0 + 4 y1 + y2)
    tp, fp, fn = np.array([3, 2, 1]), np.array([0, 0, 0]), np.array([0, 1, 2])
    assert average_precision(tp, fp, fn) == pytest.approx((1 / 2 + 4 * 2 / 3 + 3 / 4) / 12)
    # recalls 0/4, 1/4, 3/4 and precisions 0, 1/2, 3/4: the parabola through them
    tp, fp, fn = np.array([3, 1, 0]), np.array([0, 0, 1]), np.array([0, 2, 3])
    parabola = np.polyint(np.polyfit([0, 1 / 4, 3 / 4], [0, 1 / 2, 3 / 4], 2))
    assert average_precision(tp, fp, fn) == pytest.approx(np.polyval(parabola, 3 / 4))


def fixed_interval_metrics(probs, masks) -> dict[str, float]:
    """CLIPSeg's `FixedIntervalMetrics` written out from its formulas, threshold by threshold and sample by sample."""
    taus = [k / 50 for k in range(1, 50)]
    samples = len(probs)
    tp, fp, fn = np.zeros((3, len(taus), samples), int)
    for t, tau in enumerate(taus):
        for k in range(samples):
            found, true = probs[k] > np.float32(tau), masks[k]
            tp[t, k], fp[t, k] = np.sum(found & true), np.sum(found & ~true)
            fn[t, k] = np.sum(~found & true)
    miou = [sum(tp[t, k] / (1 + tp[t, k] + fp[t, k] + fn[t, k]) for k in range(samples)) / samples for t in range(49)]
    tp, fp, fn = tp.sum(1), fp.sum(1), fn.sum(1)
    iou_fg = [tp[t] / (1 + tp[t] + fp[t] + fn[t]) for t in range(49)]
    points = sorted({
        (tp[t] / (1 + tp[t] + fn[t]), tp[t] / (1 + tp[t] + fp[t])) for t in range(49) if tp[t] + fp[t] > 0
    })
    recall, precision = zip(*points, strict=True)
    area = float(simpson(precision, x=recall)) if len(points) > 1 else 0.0
    return {"miou": max(miou), "iou_fg": max(iou_fg), "ap": area}


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_clipsegs_formulas_to_the_last_digit(seed):
    rng = np.random.default_rng(seed)
    samples, height, width = rng.integers(1, 9), rng.integers(3, 20), rng.integers(3, 20)
    masks = rng.random((samples, height, width)) < rng.random()
    probs = (rng.random(masks.shape) ** rng.uniform(0.3, 3) * 0.7 + 0.3 * masks).astype(np.float32)
    if seed % 2:
        probs = (probs * 50).round().astype(np.float32) / np.float32(50)  # many values on a threshold
    metrics = PhraseMetrics()
    for at in range(0, samples, 3):
        metrics.update(torch.from_numpy(probs[at : at + 3]), torch.from_numpy(masks[at : at + 3]))
    scores = metrics.compute()
    assert {name: getattr(scores, name) for name in ("miou", "iou_fg", "ap")} == fixed_interval_metrics(probs, masks)


def test_the_curve_is_that_of_scikit_learn_without_the_plus_one():
    """Scikit-learn takes every score as a threshold and p >= tau; on scores between the 49 thresholds both agree."""
    learn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    masks = rng.random((3, 40, 40)) < 0.3
    probs = (rng.integers(0, 50, masks.shape) + 0.5) / 50  # each between two thresholds
    probs = np.where(masks, np.maximum(probs, rng.integers(0, 50, masks.shape) / 50 + 0.01), probs).astype(np.float32)
    precision, recall, _ = learn.precision_recall_curve(masks.ravel(), probs.ravel())
    # Its thresholds are the 50 levels of the scores, lowest first, and one above all; ours cut above the lowest level.
    tp, fp, fn = pooled_counts(probs, masks)
    assert precision[1:-1] == pytest.approx(tp / (tp + fp))
    assert recall[1:-1] == pytest.approx(tp / (tp + fn))
    metrics = PhraseMetrics()
    metrics.update(torch.from_numpy(probs), torch.from_numpy(masks))
    area = -trapezoid(precision[1:-1], recall[1:-1])
    assert metrics.compute().ap == pytest.approx(area, abs=2e-3)


def pooled_counts(probs: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [probs > tau for tau in THRESHOLDS]
    return tuple(np.array([(f & m).sum() for f in found]) for m in (masks, ~masks)) + (
        np.array([(~f & masks).sum() for f in found]),
    )


def test_memory_does_not_grow_with_the_samples():
    generator = torch.Generator().manual_seed(0)
    metrics, sizes = PhraseMetrics(), []
    for _ in range(2):
        for _ in range(20):
            metrics.update(torch.rand(4, 8, 8, generator=generator), torch.rand(4, 8, 8, generator=generator) > 0.5)
        sizes.append(len(pickle.dumps(metrics)))
    assert abs(sizes[1] - sizes[0]) < 50


def test_refuses_what_it_cannot_count():
    metrics = PhraseMetrics()
    with pytest.raises(InputError, match="no sample"):
        metrics.compute()
    with pytest.raises(InputError, match=r"\[1, 2, 2\] and \[1, 2, 3\]"):
        metrics.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="bool masks"):
        metrics.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match="NaN"):
        metrics.update(torch.full((1, 2, 2), float("nan")), torch.zeros(1, 2, 2, dtype=torch.bool))
