"""Probes decode what maps hold at each position under a phrase, and nothing of pixels that do not count."""

from dataclasses import replace

import pytest
import torch

from ldznet_core.evaluation import probe
from ldznet_core.evaluation.probe import Inputs, Probe, fit, points_of, score

CPU, GRID = torch.device("cpu"), (4, 4)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """Two things in each picture, and phrases that name one of them. The first map shows both at 4 x 4 positions, the
    second both averaged to 1 x 1, the third nothing."""
    generator = torch.Generator().manual_seed(0)
    things = torch.rand(48, 2, 4, 4, generator=generator) < 0.3
    named = torch.arange(48) % 2
    masks = things[torch.arange(48), named].repeat_interleave(8, 1).repeat_interleave(8, 2)
    both = things.half() * 20
    maps = [both, both.mean((2, 3), keepdim=True), torch.randn(48, 2, 4, 4, generator=generator).half()]
    return Inputs(maps, torch.eye(2)[named], masks, torch.ones_like(masks))


def test_only_a_map_that_shows_things_where_they_are_is_decoded(inputs, monkeypatch):
    monkeypatch.setattr(probe, "POINTS", 16)
    shown, averaged, nothing = (s.miou for s in score(fit(inputs, GRID, 100, 0, CPU), inputs, GRID, CPU))
    assert shown > 0.8  # which of the two things is meant, the phrase alone tells
    assert nothing < 0.5 and averaged < 0.5


def test_probes_are_alike_but_for_the_channels_they_read(inputs):
    sizes = [sum(p.numel() for p in Probe(torch.zeros(2, c, 1, 1), torch.zeros(2, 5)).parameters()) for c in (2, 10)]
    assert sizes[1] - sizes[0] == 8 * 32


def test_the_same_seed_trains_the_same_probes_and_leaves_torchs_random_state_alone(inputs):
    before = torch.get_rng_state()
    first, again, other = (fit(inputs, GRID, 3, seed, CPU)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["reduce.weight"], other["reduce.weight"])


def test_pixels_that_do_not_count_change_nothing(inputs):
    counts = torch.ones_like(inputs.counts)
    counts[:, 10:20] = False
    flipped = inputs.masks.clone()
    flipped[:, 10:20] = ~flipped[:, 10:20]
    one, other = (replace(inputs, masks=masks, counts=counts) for masks in (inputs.masks, flipped))
    probes = fit(one, GRID, 3, 0, CPU)
    assert torch.equal(probes[0].reduce.weight, fit(other, GRID, 3, 0, CPU)[0].reduce.weight)
    assert score(probes, one, GRID, CPU) == score(probes, other, GRID, CPU)


def test_points_are_the_centres_of_cells():
    assert points_of(torch.tensor([[0, 5]]), (2, 4)).tolist() == [[[-0.75, -0.5], [-0.25, 0.5]]]
