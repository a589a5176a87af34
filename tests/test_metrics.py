import numpy as np
import pytest
import torch

from ldznet_core.errors import InputError
from ldznet_core.metrics import THRESHOLDS, PhraseMetrics, average_precision, simpson


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


@pytest.mark.parametrize("points", [1, 2, 3, 4, 5, 6, 9, 10])
def test_simpson_is_scipys(points):
    reference = pytest.importorskip("scipy.integrate").simpson
    rng = np.random.default_rng(points)
    x, y = np.sort(rng.random(points)), rng.random(points)
    assert simpson(y, x) == pytest.approx(float(reference(y, x=x)))


@pytest.mark.parametrize(
    "x", [[0.0, 0.1, 0.1], [0.0, 0.0, 0.1], [0.2, 0.2, 0.2, 0.2], [0, 0.1, 0.1, 0.4], [0, 0.1, 0.3, 0.3]]
)
def test_simpson_is_scipys_where_recalls_coincide(x):
    reference = pytest.importorskip("scipy.integrate").simpson
    x, y = np.array(x), np.array([0.9, 0.5, 0.4, 0.2])[: len(x)]
    assert simpson(y, x) == pytest.approx(float(reference(y, x=x)))


def test_simpson_is_exact_for_a_parabola():
    x = np.array([0.0, 1.0, 3.0])
    assert simpson(x**2, x) == pytest.approx(9.0)


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
