"""Mask maths on literal tensors."""

import pytest
import torch

from ldznet_core.errors import InputError
from ldznet_core.imaging.visualize import crop_box
from ldznet_core.segment.postprocess import exclusive, present, threshold


def square(height, width, top, left, bottom, right):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def test_threshold_is_strict():
    assert threshold(torch.tensor([0.2, 0.5, 0.51])).tolist() == [False, False, True]


def test_crop_box_is_pillows():
    mask = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.6, 0.9, 0.0], [0.0, 0.2, 0.7, 0.0]])
    assert crop_box(mask) == (1, 1, 3, 3)
    assert crop_box(mask, tau=0.65) == (2, 1, 3, 3)
    assert crop_box(mask, tau=0.8) == (2, 1, 3, 2)


def test_crop_box_padding_stays_in_the_picture():
    assert crop_box(square(4, 6, 1, 1, 2, 2), pad=2) == (0, 0, 4, 4)


def test_nothing_has_no_crop_box():
    assert crop_box(torch.zeros(3, 3)) is None


def test_a_crop_box_is_of_one_mask():
    with pytest.raises(InputError, match=r"\[1, 2, 2\]"):
        crop_box(torch.zeros(1, 2, 2))


def test_what_is_nowhere_above_the_threshold_is_all_zero_and_the_rest_stays_soft():
    masks = torch.tensor([[[0.1, 0.6], [0.2, 0.3]], [[0.5, 0.4], [0.0, 0.1]]])
    assert torch.equal(present(masks), torch.stack([masks[0], torch.zeros(2, 2)]))


def test_of_competing_masks_the_highest_keeps_a_pixel_and_its_soft_value():
    masks = torch.tensor([[[0.9, 0.6, 0.2, 0.0]], [[0.3, 0.7, 0.3, 0.0]]])
    kept, labels = exclusive(masks)
    assert kept.tolist() == torch.tensor([[[0.9, 0.0, 0.0, 0.0]], [[0.0, 0.7, 0.3, 0.0]]]).tolist()
    assert labels.tolist() == [[1, 2, 0, 0]]
    assert torch.equal(exclusive(masks[None])[1], labels[None])
