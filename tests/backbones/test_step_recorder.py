"""What is kept of a sampling run: maps of the step nearest to 400, the mean query of the later steps, larger calls."""

import pytest
import torch
from torch import nn

from ldznet_core.backbones.queries import Layer, Plan
from ldznet_core.backbones.step_recorder import StepRecorder, Wanted
from ldznet_core.segment.attention_maps import cross_attention

WANTED = Wanted(("input_blocks.1",), 400)
PLAN = Plan(((1.0, (Layer("input_blocks.1", 0, 0),)),), None)


class Block(nn.Module):
    """A spatial transformer with one layer of cross-attention, which puts out what it is called with."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Module()])
        self.transformer_blocks[0].attn2 = nn.Module()
        self.transformer_blocks[0].attn2.to_q = nn.Identity()

    def forward(self, x):
        self.transformer_blocks[0].attn2.to_q(x.flatten(2).transpose(1, 2))
        return x


def run(recorder, *steps, size=(2, 2), rows=lambda output: output):
    """Calls of a network at (timestep, value): its map is that value everywhere, and so are its queries."""
    block = Block()
    for timestep, value in steps:
        with recorder.step(timestep, size, lambda name: block, rows):
            block(torch.as_tensor(value).float().expand(1, 3, *size))
    assert not block._forward_hooks
    return recorder


def both() -> StepRecorder:
    return StepRecorder([WANTED], lambda height, width: PLAN)


def test_maps_are_those_of_the_step_nearest_to_400():
    (features,) = run(both(), (999, 1), (450, 2), (370, 3), (330, 4)).features()
    assert features.timestep == 370 and torch.equal(features.maps[0], torch.full((1, 3, 2, 2), 3.0))


def test_each_set_of_taps_is_kept_of_its_own_step():
    late = Wanted(("input_blocks.1",), 50)
    steps = [(999, 1), (420, 2), (360, 3), (200, 4), (80, 5), (10, 6)]
    first, second = run(StepRecorder([WANTED, late]), *steps).features()
    assert (first.timestep, second.timestep) == (420, 80) and second.maps[0].mean() == 5
    assert len(run(StepRecorder([WANTED, late]), *steps[:3]).features()) == 1


def test_queries_are_averaged_from_timestep_600_on_each_timestep_once():
    recorder = run(both(), (900, 9))
    assert recorder.queries is None
    run(recorder, (600, 1), (600, 7), (300, 3))
    assert torch.equal(recorder.queries.cross[0], torch.full((1, 4, 3), 2.0))


def test_the_mean_query_gives_the_geometric_mean_of_the_steps():
    torch.manual_seed(0)
    values, k = torch.randn(3, 1, 3, 4, 4), torch.randn(2, 3, 3)
    mean = run(both(), *zip((500, 300, 100), values, strict=True), size=(4, 4)).queries.cross[0]
    logs = sum(cross_attention(v.flatten(2).transpose(1, 2), k, 1).log() for v in values) / 3
    assert torch.allclose(cross_attention(mean, k, 1), logs.softmax(-1), atol=1e-5)


def test_a_call_on_a_larger_part_of_the_latent_takes_the_place_of_a_smaller_one():
    recorder = run(both(), (400, 1), size=(2, 2))
    run(recorder, (400, 5), size=(2, 4))
    run(recorder, (400, 9), size=(2, 2))
    assert recorder.features()[0].maps[0].shape == (1, 3, 2, 4) and recorder.queries.size == (2, 4)
    assert recorder.features()[0].maps[0].mean() == 5 and recorder.queries.cross[0].mean() == 5


def test_calls_whose_positive_rows_are_unknown_leave_nothing():
    recorder = run(both(), (400, 1), rows=lambda output: output[:0])
    assert not recorder.features() and recorder.queries is None


def test_a_call_that_fails_leaves_nothing_and_no_hook():
    recorder, block = both(), Block()
    with pytest.raises(MemoryError), recorder.step(400, (2, 2), lambda name: block, lambda output: output):
        block(torch.ones(1, 3, 2, 2))
        raise MemoryError
    assert not recorder.features() and recorder.queries is None and not block._forward_hooks
    run(recorder, (300, 2))
    assert recorder.features()[0].maps[0].mean() == 2
