"""Large pictures in windows: where they lie, and that no seam is seen."""

import pytest
import torch

from ldznet_core.segment.base import BaseSegmenter, MaskPrediction
from ldznet_core.segment.tiles import blend, predict_tiled, starts


@pytest.mark.parametrize(
    ("length", "expected"),
    [(100, [0]), (128, [0]), (129, [0, 1]), (224, [0, 96]), (225, [0, 48, 97]), (512, [0, 96, 192, 288, 384])],
)
def test_windows_overlap_by_a_quarter_and_cover_a_side(length, expected):
    assert starts(length, 128) == expected


def windows(masks, side):
    height, width = masks.shape[-2:]
    for top in starts(height, side):
        for left in starts(width, side):
            yield top, left, masks[..., top : top + side, left : left + side]


@pytest.mark.parametrize("size", [(8, 8), (20, 8), (19, 23), (5, 30)])
def test_what_windows_agree_on_is_kept(size):
    masks = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blend(windows(masks, 8), size), masks)


def test_windows_that_disagree_go_over_into_each_other():
    """Columns 0..7 say 0, columns 6..13 say 1: two columns are shared, by sin² of the distance to each edge."""
    found = blend([(0, 0, torch.zeros(1, 1, 1, 8)), (0, 6, torch.ones(1, 1, 1, 8))], (1, 14))[0, 0, 0]
    near, far = 0.038060, 0.308658  # sin²(π/16) and sin²(3π/16)
    mixed = torch.tensor([near / (near + far), far / (near + far)])
    torch.testing.assert_close(found, torch.cat([torch.zeros(6), mixed, torch.ones(6)]), atol=1e-5, rtol=0)


class Red(BaseSegmenter):
    """Masks are the red of what it is shown; `looks` are the sizes of it."""

    area = 64 * 64

    def __init__(self, progress=None):
        self.progress, self.looks = progress or (lambda share: None), []

    def predict(self, image, phrases, **how):
        self.looks.append((*image.shape[1:3],))
        self.progress(0.0)
        return MaskPrediction(image[..., 0][:, None].expand(-1, len(phrases), -1, -1))


def test_a_small_picture_is_done_whole():
    red, image = Red(), torch.rand(1, 64, 60, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predict_tiled(red, image, ["a"]).masks[0, 0], image[0, ..., 0])
    assert red.looks == [(64, 60)]


def test_a_large_picture_is_done_whole_and_in_windows():
    shares = []
    red, image = Red(shares.append), torch.rand(1, 100, 112, 3, generator=torch.Generator().manual_seed(0))
    found = predict_tiled(red, image, ["a", "b"]).masks
    torch.testing.assert_close(found[0], image[0, ..., 0].expand(2, -1, -1))
    assert red.looks == [(100, 112)] + [(64, 64)] * 4
    assert shares == [0.0, 0.2, 0.4, 0.6, 0.8]


@pytest.mark.parametrize(("peak", "presence", "mask"), [(0.0, None, 1.0), (0.9, None, 0.91), (0.9, 1.5, 0.0)])
def test_the_whole_counts_as_much_as_it_is_sure(peak, presence, mask):
    """A segmenter that says `peak` in the left column of the whole picture, and 1 everywhere in windows. Of a presence
    below 2 it is not sure at all, and neither are windows."""

    class Sure(Red):
        def predict(self, image, phrases, **how):
            masks = torch.ones(1, 1, *image.shape[1:3])
            if image.shape[2] == 128:
                masks = torch.zeros(1, 1, 64, 128)
                masks[..., 0] = peak
            return MaskPrediction(masks, None if presence is None else torch.tensor([[presence]]))

    found = predict_tiled(Sure(), torch.zeros(1, 64, 128, 3), ["a"])
    assert found.masks[0, 0, 5, 0].item() == pytest.approx(mask)
    assert found.masks[0, 0, 5, 1].item() == pytest.approx(1 - peak if presence is None else 0.0)
    assert found.presence is None or found.presence.item() == presence
