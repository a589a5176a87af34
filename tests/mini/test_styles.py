"""Looks of things and of whole pictures."""

import numpy as np
import pytest

from ldznet_core.mini import styles
from ldznet_core.mini.styles import Looks
from ldznet_core.mini.world import Background, Sprite, compose


@pytest.fixture
def sprites():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[8:32, 8:32] = (200, 60, 40, 255)
    return [Sprite(noun, noun, "flat", "train", noun, "red", rgba) for noun in ("cat", "bus")]


GROUND = [Background("grass", "train", np.full((64, 64, 3), 90, np.uint8))]


def scene(sprites, looks, seed=3):
    return compose(np.random.default_rng(seed), sprites, GROUND, 64, looks=looks)


@pytest.mark.parametrize("look", [*styles.HUES, *styles.INSIDE])
def test_every_look_keeps_the_size_and_changes_the_picture(look):
    picture = np.random.default_rng(0).uniform(0, 255, (24, 32, 3)).astype(np.float32)
    again, changed = (np.clip(look(np.random.default_rng(2), picture.copy()), 0, 255) for _ in range(2))
    assert changed.shape == picture.shape and np.isfinite(changed).all()
    assert np.array_equal(again, changed) and not np.allclose(changed, picture)


def test_looks_depend_on_the_seed_alone(sprites):
    looks = Looks(things=1, pictures=1)
    assert np.array_equal(scene(sprites, looks).image, scene(sprites, looks).image)
    assert not np.array_equal(scene(sprites, looks).image, scene(sprites, None).image)


def test_a_thing_whose_hue_changed_has_no_colour_word(sprites):
    scenes = [scene(sprites, Looks(things=1, pictures=0), seed) for seed in range(20)]
    colours = {thing.sprite.colour for one in scenes for thing in one.things}
    assert colours == {"red", None}
    kept = [scene(sprites, Looks(1, 0, keep_hue=True), seed) for seed in range(9)]
    assert {thing.sprite.colour for one in kept for thing in one.things} == {"red"}


def test_an_outline_is_part_of_the_mask(sprites):
    rgba = np.zeros((30, 30, 4), np.float32)
    rgba[5:25, 5:25] = (90, 90, 90, 1)
    lined = styles.outlined(np.random.default_rng(0), rgba)
    assert lined.shape[0] > 30 and (lined[..., 3] > 0.5).sum() > (rgba[..., 3] > 0.5).sum()


def test_an_empty_picture_names_its_ground_alone(sprites):
    empty = scene(sprites, Looks(0, 0, empty=1))
    assert empty.things == () and "cat" not in empty.caption and "bus" not in empty.caption and empty.caption


def test_a_bent_thing_has_another_shape_and_the_same_colour():
    thing = np.zeros((30, 40, 4), np.float32)
    thing[5:25, 5:35] = (200, 60, 40, 1)
    shapes = [styles.bent(np.random.default_rng(seed), thing) for seed in range(8)]
    assert len({shape.shape for shape in shapes}) > 4
    for shape in shapes:
        inside = shape[..., 3] > 0.5
        assert 0.7 < inside.sum() / 600 < 1.4 and inside.mean() > 0.4  # cut to the thing
        assert np.allclose(shape[inside][:, :3], (200, 60, 40), atol=2) and np.isfinite(shape).all()


def test_a_thing_of_which_nothing_shows_stays_as_it_is():
    nothing = np.zeros((8, 8, 4), np.float32)
    assert np.array_equal(styles.bent(np.random.default_rng(0), nothing), nothing)
