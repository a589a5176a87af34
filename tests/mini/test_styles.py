"""Scenes of the miniature world whose things and pictures have looks of their own."""

import numpy as np
import pytest

from ldznet_core.mini.sprites import Background, Sprite
from ldznet_core.mini.styles import Looks
from ldznet_core.mini.world import compose


@pytest.fixture
def sprites():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[8:32, 8:32] = (200, 60, 40, 255)
    return [Sprite(noun, noun, "flat", "train", noun, "red", rgba) for noun in ("cat", "bus")]


GROUND = [Background("grass", "train", np.full((64, 64, 3), 90, np.uint8))]


def scene(sprites, looks, seed=3):
    return compose(np.random.default_rng(seed), sprites, GROUND, 64, looks=looks)


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


def test_an_empty_picture_names_its_ground_alone(sprites):
    empty = scene(sprites, Looks(0, 0, empty=1))
    assert empty.things == () and "cat" not in empty.caption and "bus" not in empty.caption and empty.caption
