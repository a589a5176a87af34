"""Polygons and run-length codes."""

import numpy as np
import pytest

from ldznet_core.data.annotations import mask_of, packed
from ldznet_core.errors import InputError

CHECKER = [[0, 1, 0], [1, 0, 1]]  # height 2, width 3; by columns 0 1 1 0 0 1


def test_polygons_are_united_and_cut_off_at_the_edge():
    squares = packed([[[0, 0], [2, 0], [2, 2], [0, 2]], [3, -5, 9, -5, 9, 1, 3, 1]])
    assert mask_of([squares], 3, 4).astype(int).tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0]]


def test_a_pixel_belongs_to_a_polygon_that_holds_its_centre():
    """In COCO's files the first pixel's centre is at 0.5, in PhraseCut's at 0."""
    triangle = [[0, 0], [4, 0], [0, 4]]
    assert mask_of([packed([triangle])], 4, 4).astype(int).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert mask_of([packed([triangle], first=0)], 4, 4).astype(int).tolist() == [
        [1, 1, 1, 1],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
    ]


def test_what_a_polygon_encloses_twice_is_a_hole_and_a_thin_one_has_a_pixel():
    ring = [[0, 0], [4, 0], [4, 3], [0, 3], [0, 0], [1, 1], [3, 1], [3, 2], [1, 2], [1, 1]]
    assert mask_of([packed([ring])], 3, 4).astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert mask_of([packed([[[2.1, 0.2], [2.2, 0.2], [2.2, 0.3]]])], 2, 4).astype(int).tolist() == [
        [0, 0, 1, 0],
        [0] * 4,
    ]


def test_run_length_codes_plain_and_compressed():
    """The compressed string is what COCO's own tools write for these runs."""
    runs = [1, 2, 2, 1]
    assert mask_of([packed({"size": [2, 3], "counts": runs})], 2, 3).astype(int).tolist() == CHECKER
    assert mask_of([packed({"size": [2, 3], "counts": "122O"})], 2, 3).astype(int).tolist() == CHECKER


def compressed(mask):
    """An encoder of its own, to test the decoder on runs of any length."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], edges])).tolist()
    text = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(48 + (digit | 32 if more else digit))
            if not more:
                break
    return {"size": list(mask.shape), "counts": text}


def test_random_masks_survive_compression():
    rng = np.random.default_rng(0)
    for share in (0.001, 0.02, 0.5, 0.99):
        mask = rng.random((70, 90)) < share
        assert (mask_of([packed(compressed(mask))], 70, 90) == mask).all()


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([], "no polygon"),
        ([[0, 0, 1, 1]], "fewer than three corners"),
        ([[0, 0, 1, 1, float("nan"), 3]], "not finite"),
        ([[0, 0, 1, 1, 2]], "not a list of x, y pairs"),
        (5, "not a list of x, y pairs"),
        ({"size": [2, 3]}, "is not {"),
        ({"size": [2, 3], "counts": [1, 2]}, "covers 3 pixels instead of 3x2"),
        ({"size": [2, 3], "counts": "12l"}, "is cut short"),
        ({"size": [2, 3], "counts": "1 2"}, "is cut short"),
    ],
)
def test_broken_annotations_are_refused(segmentation, message):
    with pytest.raises(InputError, match=message):
        packed(segmentation)


def test_objects_outside_their_picture_are_refused():
    with pytest.raises(InputError, match="outside its picture of 3x2"):
        mask_of([packed([[4, 0, 9, 0, 9, 1]])], 2, 3)
    with pytest.raises(InputError, match="of another size than its picture of 3x3"):
        mask_of([packed({"size": [2, 3], "counts": [6]})], 3, 3)
