"""How far a region's prompt rules: by the masks that a reader finds in the steps of a sampler."""

import pytest
import torch

from ldznet_core.backbones.steering import Region, Step, Tracker, blend, faded

EDGE = Region(feather=0)


class Reads:
    """A reader that finds masks given in advance, one a step; None for a step that shows none."""

    def __init__(self, *masks):
        self.left = list(masks)

    def modules(self, size, find):
        return {}

    def masks(self, step):
        return self.left.pop(0)


def half(left: float, right: float) -> torch.Tensor:
    """A mask [1, 16, 16] of two halves; a latent of it is [1, 4, 2, 2]."""
    return torch.tensor([left, right], dtype=torch.float32).repeat_interleave(8).expand(1, 16, 16)


def tracked(region: Region, *masks) -> list:
    """The share [h, w] after each step, as lists."""
    tracker, step = Tracker(region, Reads(*masks)), Step(torch.zeros(1, 4, 2, 2), 800, {}, torch.zeros(1, 2, 3))
    shares = []
    for _ in masks:
        tracker.read(step)
        share = tracker.share()
        shares.append(None if share is None else share[0].tolist())
    return shares


LEFT, RIGHT = [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]


def test_a_region_stays_as_it_was_when_it_was_found():
    assert tracked(EDGE, half(0.2, 0.3), half(0.9, 0.4), half(0.1, 0.9)) == [None, LEFT, LEFT]


def test_a_region_that_follows_keeps_its_last_place_while_the_words_are_not_found():
    region = Region(feather=0, follow=True)
    assert tracked(region, half(0.9, 0.4), half(0.1, 0.9), half(0.1, 0.2)) == [LEFT, RIGHT, RIGHT]


def test_a_step_that_shows_nothing_changes_nothing():
    assert tracked(Region(feather=0, follow=True), None, half(0.9, 0), None) == [None, LEFT, LEFT]


def test_strength_and_invert():
    assert tracked(Region(strength=0.5, feather=0, invert=True), half(0.9, 0.4)) == [[[0.0, 0.5], [0.0, 0.5]]]
    tracker = Tracker(Region(strength=0), Reads())
    assert tracker.is_settled and tracker.share() is None


def test_each_image_of_a_batch_is_held_when_its_words_are_found():
    nothing = half(0, 0)
    reads = Reads(torch.cat([half(1, 0), nothing]), torch.cat([half(0, 1), half(0, 1)]))
    tracker = Tracker(EDGE, reads)
    step = Step(torch.zeros(2, 4, 2, 2), 800, {}, torch.zeros(1, 2, 3))
    tracker.read(step)
    assert not tracker.is_settled
    tracker.read(step)
    assert tracker.is_settled and tracker.share().tolist() == [LEFT, RIGHT]


def test_edges_fade_over_the_width_of_the_feather():
    inside = half(1, 0).repeat_interleave(4, 2)  # [1, 16, 64]: eight positions wide
    row = faded(inside, (2, 8), 16)[0, 0]
    assert row.tolist() == pytest.approx([1, 1, 1, 2 / 3, 1 / 3, 0, 0, 0])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.999])
def test_a_prompt_has_its_share(share):
    base, other = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    assert blend(base, [(other, torch.full((1, 1, 1), share))]).flatten().tolist() == pytest.approx([share] * 4)


def test_a_full_share_rules_and_two_of_them_halve():
    base, full = torch.full((1, 1, 1, 1), 100.0), torch.ones(1, 1, 1)
    two = [(torch.full((1, 1, 1, 1), value), full) for value in (2.0, 4.0)]
    assert float(blend(base, two[:1])) == pytest.approx(2, abs=0.02)
    assert float(blend(base, two)) == pytest.approx(3, abs=0.02)
