"""Scores of cut masks at the size of the picture, by hand."""

import numpy as np
import pytest

from ldznet_core import InputError
from ldznet_core.evaluation.native import NativeMetrics


def rows(*numbers: int) -> np.ndarray:
    """A picture of 20 x 10 pixels in which these rows are true."""
    mask = np.zeros((20, 10), bool)
    mask[list(numbers)] = True
    return mask


def scores(*pairs):
    metrics = NativeMetrics()
    for found, truth in pairs:
        metrics.update(found, truth)
    return metrics.compute()


def test_iou_is_the_mean_of_phrases_and_cumulative_over_pixels():
    # 1/2 of 20 pixels, and all of 60
    result = scores((rows(0), rows(0, 1)), (rows(*range(6)), rows(*range(6))))
    assert result.native_miou == (1 / 2 + 1) / 2
    assert result.native_ciou == (10 + 60) / (20 + 60)


def test_precision_is_the_share_above_a_threshold():
    ten = rows(*range(10))
    result = scores((rows(*range(5)), ten), (rows(*range(6)), ten), (rows(*range(8)), ten), (ten, ten))
    assert (result.pr50, result.pr70, result.pr90) == (3 / 4, 2 / 4, 1 / 4)  # 0.5 itself is not above 0.5


def test_absent_phrases_count_in_giou_and_accuracy():
    # 40 pixels count as empty, 50 do not
    result = scores((rows(0, 1, 2, 3), rows()), (rows(0, 1, 2, 3, 4), rows()), (rows(0), rows(0, 1)))
    assert result.n_acc == 1 / 2
    assert result.giou == (1 + 0 + 1 / 2) / 3
    assert result.t_acc == 0  # 10 pixels are as good as nothing
    assert result.native_miou == 1 / 2
    assert result.native_ciou == 10 / (40 + 50 + 20)


def test_what_the_data_hold_nothing_of_has_no_score():
    named = scores((rows(0), rows(0)))
    assert (named.giou, named.n_acc, named.t_acc) == (None, None, None)
    absent = scores((rows(), rows()))
    assert (absent.native_miou, absent.native_ciou, absent.pr50, absent.t_acc) == (None, None, None, None)
    assert (absent.giou, absent.n_acc) == (1, 1)


def test_masks_of_other_shapes_or_types_are_refused():
    with pytest.raises(InputError, match=r"bool \[20, 10\] and bool \[2, 2\]"):
        scores((rows(0), np.ones((2, 2), bool)))
    with pytest.raises(InputError, match="float64"):
        scores((rows(0) * 1.0, rows(0)))
