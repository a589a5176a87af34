"""Cutting things out of drawings on plain grounds, on pictures drawn here, and composing them."""

import numpy as np
import pytest

from ldznet_core.training.cutouts import Cutout, components, compose, cut, filled, matte, visible


def drawing(ground=(128, 128, 128), box=np.s_[16:48, 16:48], thing=(220, 30, 30)) -> np.ndarray:
    picture = np.full((64, 64, 3), ground, np.uint8)
    picture[box] = thing
    return picture


def test_pieces_that_share_a_side_are_one():
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool)
    labels = components(mask)
    assert len({*labels[mask]}) == 2 and labels[0, 0] == labels[0, 1] != labels[1, 2] == labels[2, 3]
    assert not labels[~mask].any()


def test_holes_are_filled_and_bays_are_not():
    ring = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]], bool)
    assert filled(ring).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_the_matte_is_what_differs_from_the_ground():
    picture = drawing()
    picture[28:36, 28:36] = 128  # of the ground's colour, inside
    found = matte(picture)
    assert found[18:46, 18:46].all() and found.sum() == pytest.approx(32 * 32, rel=0.15)
    assert not found[:15].any() and not found[49:].any()


def test_a_ground_that_is_not_plain_gives_no_matte():
    assert matte(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)) is None


def test_a_good_drawing_is_cut_out():
    attention = np.zeros((8, 8), np.float32)
    attention[4, 4] = 1
    thing, reason = cut("apple", [drawing(), drawing(ground=(60, 110, 200))], attention)
    assert reason == "" and thing.noun == "apple"
    assert thing.rgba.shape[2] == 4 and thing.rgba.shape[0] == pytest.approx(32, abs=3)
    assert thing.rgba[10:20, 10:20].reshape(-1, 4).tolist() == [[220, 30, 30, 255]] * 100


AT_THE_CORNER = np.zeros((8, 8), np.float32)
AT_THE_CORNER[0, 0] = 1
TWO = drawing(box=np.s_[8:30, 8:30])
TWO[36:58, 36:58] = (220, 30, 30)


@pytest.mark.parametrize(
    ("pictures", "attention", "reason"),
    [
        ([drawing(box=np.s_[30:34, 30:34])], None, "too small"),
        ([drawing(box=np.s_[4:60, 4:60])], None, "too large"),
        ([drawing(), drawing(box=np.s_[30:62, 30:62])], None, "grounds disagree"),
        ([TWO], None, "in several pieces"),
        ([drawing(box=np.s_[0:48, 0:40])], None, "cut off at the edge"),
        ([drawing()], np.zeros((8, 8), np.float32), "not seen by attention"),
        ([drawing()], AT_THE_CORNER, "attention elsewhere"),
        ([np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)], None, "the ground is not plain"),
    ],
)
def test_what_is_of_no_use_is_refused_with_its_reason(pictures, attention, reason):
    assert cut("apple", pictures, attention) == (None, reason)


def test_the_upper_of_two_layers_hides_the_lower():
    alphas = np.array([[[1.0, 1.0, 0.0]], [[0.0, 0.8, 0.4]]])
    assert visible(alphas).tolist() == [[[True, False, False]], [[False, True, False]]]


def test_masks_of_a_scene_are_where_its_things_are():
    things = [
        Cutout(noun, np.full((20, 20, 4), (*colour, 255), np.uint8))
        for noun, colour in (("apple", (220, 30, 30)), ("cat", (30, 30, 220)))
    ]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        image, masks = compose(rng, things, np.full((64, 64, 3), 128, np.uint8))
        assert image.shape == (64, 64, 3) and masks.shape == (2, 64, 64) and not (masks[0] & masks[1]).any()
        assert (image[masks[0]][:, 0] > 150).all() and (image[masks[1]][:, 2] > 150).all()
        assert (image[~masks.any(0)] == 128).mean() > 0.9  # soft edges apart


def test_a_thing_that_cannot_be_seen_makes_no_scene():
    glass = Cutout("glass", np.zeros((20, 20, 4), np.uint8))
    assert compose(np.random.default_rng(0), [glass], np.full((64, 64, 3), 128, np.uint8)) is None
