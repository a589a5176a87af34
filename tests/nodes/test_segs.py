"""Masks to SEGS: what a segment holds. That Impact Pack takes it is in end_to_end/test_impact.py."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")

# A cat in rows 4 to 7 and columns 6 to 13 of a picture of 20 x 30, a dog that was not found, and a small bird.
CAT, DOG, BIRD = torch.zeros(3, 20, 30)
CAT[4:8, 6:14] = 0.8
CAT[4, 6] = 0.6
CAT[10, 10] = 0.3
BIRD[19, 29] = 1.0
MASKS = torch.stack([CAT, DOG, BIRD])
TEXT = "cat | dog | red bird"


@pytest.fixture
def to_segs(pack_nodes):
    return lambda masks, text, **options: pack_nodes["LDZNetMasksToSEGS"].execute(masks, text, **options).args[0]


@pytest.fixture
def refused(core):
    return lambda message: pytest.raises(core("errors").InputError, match=message)


def test_a_phrase_that_was_found_is_a_segment(to_segs):
    ((size, segments),) = to_segs(MASKS, TEXT, crop_factor=1.5)
    assert size == (20, 30)
    cat, bird = segments
    assert (cat.label, cat.bbox, cat.crop_region) == ("cat", (6, 4, 14, 8), [4, 3, 16, 9])
    assert cat.confidence == pytest.approx((31 * 0.8 + 0.6) / 32)
    assert torch.equal(torch.from_numpy(cat.cropped_mask), CAT[3:9, 4:16])
    assert cat.cropped_image is None and cat.control_net_wrapper is None
    assert (bird.label, bird.bbox, bird.confidence) == ("red bird", (29, 19, 30, 20), 1.0)


def test_crops_lie_in_the_image(to_segs):
    ((_, (cat, bird)),) = to_segs(MASKS, TEXT, crop_factor=3)
    assert cat.crop_region == [0, 0, 24, 12]  # moved down from -2
    assert bird.crop_region == [27, 17, 30, 20]
    ((_, (cat, _)),) = to_segs(MASKS, TEXT, crop_factor=100)
    assert cat.crop_region == [0, 0, 30, 20] and cat.cropped_mask.shape == (20, 30)


def test_the_threshold_says_what_is_in_the_box_and_the_mask_stays_soft(to_segs):
    ((_, (cat, _)),) = to_segs(MASKS, TEXT, threshold=0.2, crop_factor=1)
    assert cat.bbox == (6, 4, 14, 11) and cat.cropped_mask.max() == pytest.approx(0.8)
    assert to_segs(MASKS, TEXT, threshold=1.0) == [((20, 30), [])]


def test_each_image_has_segs_of_its_own(to_segs):
    one, two, three = to_segs(torch.stack([CAT, BIRD, DOG, BIRD, DOG, DOG]), "cat\nbird")
    assert [segment.label for segment in one[1]] == ["cat", "bird"]
    assert [segment.label for segment in two[1]] == ["bird"] and three == ((20, 30), [])
    assert to_segs(torch.zeros(0, 20, 30), "cat") == [((20, 30), [])]


def test_with_the_image_segments_have_its_size_and_their_crops_of_it(to_segs):
    image = torch.rand(1, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    ((size, (cat, _)),) = to_segs(MASKS, TEXT, image=image, crop_factor=1)
    assert size == (40, 60) and cat.bbox == (12, 8, 28, 16)
    left, top, right, bottom = cat.crop_region
    assert torch.equal(torch.from_numpy(cat.cropped_image), image[:, top:bottom, left:right])


def test_bad_input_gets_one_sentence(to_segs, refused):
    with refused("3 masks are not those of 2 phrases"):
        to_segs(MASKS, "cat | dog")
    with refused("masks of 1 images do not go with 2 images"):
        to_segs(MASKS, TEXT, image=torch.zeros(2, 20, 30, 3))
    with refused("crop_factor must be a number from 1 to 100, got 0"):
        to_segs(MASKS, TEXT, crop_factor=0)
    with refused("masks is empty"):
        to_segs(None, TEXT)
