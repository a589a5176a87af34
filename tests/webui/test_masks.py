"""What becomes of soft masks in a WebUI: growing, feathering, turning inside out, and the words that they answer."""

import pytest
import torch
from PIL import Image

from ldznet_core.errors import InputError
from ldznet_core.segment.base import MaskPrediction
from ldznet_core.segment.postprocess import feather, grow
from ldznet_webui.masks import Found, Words


def square(size: int = 9, low: int = 3, high: int = 6) -> torch.Tensor:
    mask = torch.zeros(size, size)
    mask[low:high, low:high] = 1
    return mask


def test_masks_grow_and_shrink():
    assert torch.equal(grow(square(), 1), square(9, 2, 7))
    assert torch.equal(grow(square(9, 2, 7), -1), square())
    assert torch.equal(grow(square(), 0), square())
    assert grow(square(), -2).sum() == 0


def test_growing_makes_an_octagon():
    corner = grow(square(21, 10, 11), 4)
    assert corner[6, 10] == corner[10, 6] == 1 and corner[6, 6] == 0


def test_the_border_of_the_picture_shrinks_nothing():
    mask = torch.zeros(6, 6)
    mask[:, :3] = 1
    assert grow(mask, -1).sum() == 12


def test_a_feathered_edge_is_soft_and_stays_in_its_place():
    mask = torch.zeros(1, 8, 40)
    mask[..., 20:] = 1
    row = feather(mask, 4)[0, 4]
    assert row[:15].max() == 0 and row[25:].min() > 0.999 and torch.allclose(row[19] + row[20], torch.tensor(1.0))
    assert torch.equal(feather(mask, 0), mask)


def found(words: Words) -> Found:
    masks = torch.zeros(1, 2, 16, 16)
    masks[0, 0, 4:8, 4:8] = 0.9
    return Found(words, Image.new("RGB", (16, 16)), MaskPrediction(masks, torch.tensor([[5.0, 0.0]])))


def words(**values) -> Words:
    return Words.of("cat | dog", **{"refine": False, **values})


def test_masks_of_what_is_there_and_of_what_is_not():
    answer = found(words())
    cat, dog = answer.masks()
    assert answer.present == [True, False] and answer.presence == [5.0, 0.0]
    assert cat.getbbox() == (4, 4, 8, 8) and dog.getbbox() is None
    assert answer.missing() == "not found in the picture: dog"
    assert answer.union([0]).getbbox() == (4, 4, 8, 8) and answer.union([1]).getbbox() is None
    assert answer.union([]).getbbox() is None


def test_inside_out_is_all_but_the_thing_and_nothing_where_nothing_was_found():
    cat, dog = found(words(invert=True)).masks()
    assert cat.getpixel((0, 0)) == 255 and cat.getpixel((5, 5)) == 0 and dog.getbbox() is None


def test_settings_change_without_a_model():
    answer = found(words())
    assert answer.asked(threshold=0.95).present == [False, False]
    assert answer.asked(grow=2).masks()[0].getbbox() == (2, 2, 10, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 2}, "threshold must be a number from 0 to 1, got 2"),
        ({"grow": None}, "grow must be a number from -128 to 128, got None"),
        ({"feather": -1}, "feather must be a number from 0 to 128, got -1"),
        ({"method": 3}, "the method must be a name, got 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        words(**values)


@pytest.mark.parametrize("text", [["", " "], "", None, 5])
def test_no_words_are_refused(text):
    with pytest.raises(InputError, match="no phrase was given"):
        Words.of(text)


def test_words_that_are_no_texts_are_refused():
    with pytest.raises(InputError, match=r"phrases must be a text or a list of texts, got \['cat', 5\]"):
        Words.of(["cat", 5])
