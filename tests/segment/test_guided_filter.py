"""Edges that follow the image: on pictures where it is known where the edge is."""

import pytest
import torch
import torch.nn.functional as F

from ldznet_core import InputError
from ldznet_core.segment.guided_filter import fitted, refine


def disc(size: int, radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (((rows - size / 2) ** 2 + (columns - size / 2) ** 2).sqrt() < radius).float()


def painted(mask: torch.Tensor) -> torch.Tensor:
    """A picture of the masked thing: red on blue, with a little noise."""
    colours = torch.tensor([[0.1, 0.2, 0.8], [0.9, 0.3, 0.1]])
    noise = torch.rand(*mask.shape, 3, generator=torch.Generator().manual_seed(0)) * 0.06
    return (colours[mask.long()] + noise).clamp(0, 1)


def blurred(mask: torch.Tensor, cells: int) -> torch.Tensor:
    """What a decoder on a coarse grid makes of it."""
    coarse = F.adaptive_avg_pool2d(mask[None, None], cells)
    return F.interpolate(coarse, mask.shape, mode="bilinear", align_corners=False)[0]


def overlap(soft: torch.Tensor, truth: torch.Tensor) -> float:
    found = soft > 0.5
    return float((found & truth.bool()).sum() / (found | truth.bool()).sum())


@pytest.mark.parametrize("size", [128, 500])
def test_an_edge_moves_to_where_the_colours_change(size):
    truth = disc(size, size / 4)
    coarse = blurred(torch.roll(truth, size // 40, 1), 16)  # beside the truth, too
    refined = refine(coarse, painted(truth))
    assert overlap(refined[0], truth) > 0.97 > 0.93 > overlap(coarse[0], truth)
    assert refined.min() >= 0 and refined.max() <= 1 and refined.dtype == torch.float32


def test_what_is_sure_passes_through_unchanged():
    truth = disc(240, 60)
    coarse = blurred(truth, 30)
    refined = refine(coarse, torch.rand(240, 240, 3))
    far = F.max_pool2d(((coarse > 0.01) & (coarse < 0.99)).float(), 61, 1, 30) == 0
    assert far.any() and torch.equal(refined[far], coarse[far])
    for value in (0.0, 1.0):
        flat = torch.full((1, 50, 70), value)
        assert torch.equal(refine(flat, torch.rand(50, 70, 3)), flat)


def test_where_the_image_says_nothing_the_mask_stays_about_where_it_was():
    coarse = blurred(disc(200, 50), 20)
    assert overlap(refine(coarse, torch.full((200, 200, 3), 0.5))[0], (coarse[0] > 0.5).float()) > 0.9


def test_phrases_are_refined_each_for_itself_and_sizes_are_brought_together():
    a, b = disc(120, 20), disc(120, 40)
    image = painted(b)
    both = refine(torch.stack([blurred(a, 15)[0], blurred(b, 15)[0]]), image)
    assert torch.allclose(both[1], refine(blurred(b, 15), image)[0], atol=1e-5)
    assert refine(blurred(disc(60, 20), 15), image).shape == (1, 120, 120)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 5)])
def test_small_and_narrow_pictures_are_taken(shape):
    assert refine(torch.rand(2, *shape), torch.rand(*shape, 3)).isfinite().all()


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"expected masks \[P, H, W\] and one image \[H, W, 3\]"):
        refine(torch.rand(4, 4), torch.rand(4, 4, 3))


def test_a_mask_takes_the_edges_of_a_guide_of_any_channels():
    guide = torch.zeros(4, 12, 12)
    guide[1, :, 7:] = 1.0
    soft = torch.linspace(-0.2, 1.2, 12).clamp(0, 1).expand(2, 12, 12)  # an edge of six positions, in the middle
    found = fitted(soft, guide, radius=2, smoothness=0.01)
    assert found.shape == (2, 12, 12)
    steps = found[0, 5].diff()
    most, next_most = steps.topk(2).values
    assert steps.argmax() == 6 and most > 4 * next_most
