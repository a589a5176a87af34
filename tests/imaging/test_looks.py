"""Looks of things and of whole pictures."""

import numpy as np
import pytest

from ldznet_core.imaging import looks


@pytest.mark.parametrize("look", [*looks.HUES, *looks.INSIDE])
def test_every_look_keeps_the_size_and_changes_the_picture(look):
    picture = np.random.default_rng(0).uniform(0, 255, (24, 32, 3)).astype(np.float32)
    again, changed = (np.clip(look(np.random.default_rng(2), picture.copy()), 0, 255) for _ in range(2))
    assert changed.shape == picture.shape and np.isfinite(changed).all()
    assert np.array_equal(again, changed) and not np.allclose(changed, picture)


def test_an_outline_is_part_of_the_mask():
    rgba = np.zeros((30, 30, 4), np.float32)
    rgba[5:25, 5:25] = (90, 90, 90, 1)
    lined = looks.outlined(np.random.default_rng(0), rgba)
    assert lined.shape[0] > 30 and (lined[..., 3] > 0.5).sum() > (rgba[..., 3] > 0.5).sum()


def test_a_bent_thing_has_another_shape_and_the_same_colour():
    thing = np.zeros((30, 40, 4), np.float32)
    thing[5:25, 5:35] = (200, 60, 40, 1)
    shapes = [looks.bent(np.random.default_rng(seed), thing) for seed in range(8)]
    assert len({shape.shape for shape in shapes}) > 4
    for shape in shapes:
        inside = shape[..., 3] > 0.5
        assert 0.7 < inside.sum() / 600 < 1.4 and inside.mean() > 0.4  # cut to the thing
        assert np.allclose(shape[inside][:, :3], (200, 60, 40), atol=2) and np.isfinite(shape).all()


def test_a_thing_of_which_nothing_shows_stays_as_it_is():
    nothing = np.zeros((8, 8, 4), np.float32)
    assert np.array_equal(looks.bent(np.random.default_rng(0), nothing), nothing)
