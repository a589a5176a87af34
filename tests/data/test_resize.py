"""Examples resized and cropped."""

import numpy as np
import pytest
import torch

from ldznet_core.data.base import Example
from ldznet_core.data.resize import cropped, resized
from ldznet_core.errors import InputError


def example(mask, **more):
    mask = np.array(mask, bool)
    image = np.stack([np.arange(mask.size).reshape(mask.shape)] * 3, -1).astype(np.uint8)
    return Example("cat", mask, image, **more)


def test_pictures_are_averaged_and_masks_take_the_nearest_pixel():
    one = example([[1, 1, 0, 0]] * 2, ignore=np.array([[0, 0, 1, 1]] * 2, bool), latent=torch.zeros(4, 1, 1))
    small = resized(one, 1, 2)
    assert small.mask.tolist() == [[True, False]] and small.ignore.tolist() == [[False, True]]
    assert small.image[..., 0].tolist() == [[3, 4]] and small.latent is None
    large = resized(one, 2, 8)
    assert large.mask.tolist() == [[True] * 4 + [False] * 4] * 2 and large.image.shape == (2, 8, 3)
    assert resized(one, 2, 4) is one


def test_a_thing_too_small_for_the_new_size_keeps_one_pixel():
    mask = np.zeros((8, 8), bool)
    mask[0, 7] = True
    assert resized(example(mask), 2, 2).mask.tolist() == [[False, True], [False, False]]
    assert not resized(example(np.zeros((8, 8), bool)), 2, 2).mask.any()


def test_a_latent_alone_has_no_other_size():
    with pytest.raises(InputError, match="'cat' has a latent only"):
        resized(Example("cat", np.zeros((8, 8), bool), latent=torch.zeros(4, 1, 1)), 16, 16)


@pytest.mark.parametrize("upright", [False, True])
def test_a_crop_is_a_square_that_shows_the_object(upright):
    mask = np.zeros((4, 40), bool)
    mask[:2, 30:32] = True
    one = example(mask.T if upright else mask, ignore=mask.T if upright else mask)
    crops = [cropped(one, np.random.default_rng(seed)) for seed in range(20)]
    assert all(c.mask.shape == (4, 4) and c.image.shape == (4, 4, 3) and c.mask.any() for c in crops)
    assert all((c.mask == c.ignore).all() for c in crops)
    assert len({c.image.tobytes() for c in crops}) > 1


def test_a_crop_of_an_absent_phrase_is_any_square_and_of_a_tiny_thing_the_best():
    empty = example(np.zeros((4, 40), bool))
    assert len({cropped(empty, np.random.default_rng(s)).image.tobytes() for s in range(20)}) > 5
    mask = np.zeros((40, 80), bool)
    mask[0, 70] = True  # never 5 % of a crop
    assert all(cropped(example(mask), np.random.default_rng(s)).mask.any() for s in range(20))
