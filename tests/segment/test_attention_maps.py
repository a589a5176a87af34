"""What attention says of where a phrase is, on literal tensors."""

import math

import torch

from ldznet_core.backbones.families.unet import plan
from ldznet_core.backbones.queries import Layer, Plan, Queries
from ldznet_core.networks.unet import UNetConfig
from ldznet_core.segment.attention_maps import (
    cross_attention,
    evidence,
    masks_of,
    noise_difference,
    peak,
    phrase_attention,
    propagate,
    self_attention,
)

MINI = UNetConfig(model_channels=64, channel_mult=(1, 1, 2, 2), num_heads=4, context_dim=96)


def test_cross_attention_is_the_softmax_averaged_over_heads():
    q, k = torch.randn(2, 5, 8), torch.randn(3, 4, 8)
    found = cross_attention(q, k, heads=2)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        found = found - torch.einsum("bnd,pmd->bpnm", q[..., part], k[..., part]).div(2).softmax(-1) / 2
    assert found.abs().max() < 1e-6


def test_keys_that_are_not_valid_get_no_attention():
    q, k = torch.randn(1, 5, 8), torch.randn(1, 4, 8)
    valid = torch.tensor([[True, False, True, True]])
    found = cross_attention(q, k, 2, valid)
    assert found[..., 1].eq(0).all()
    assert torch.allclose(found[..., [0, 2, 3]], cross_attention(q, k[:, [0, 2, 3]], 2), atol=1e-6)


def test_self_attention_in_pieces_is_that_of_the_whole():
    q, k = torch.randn(1100, 16), torch.randn(1100, 16)
    assert torch.allclose(self_attention(q, k, 4), cross_attention(q[None], k[None], 4)[0, 0], atol=1e-6)


def queries_of(q, level=0, share=1.0):
    chosen = Plan(((share, (Layer("input_blocks.1", 0, level),)),), None)
    side = int(math.sqrt(q.shape[1]))
    return Queries(chosen, (side, side), (q,), None)


def test_attention_is_divided_between_words_and_the_empty_text():
    """Two words at position 0, none at position 1, and start and end of the empty text everywhere."""
    q = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]) * 2**0.5
    k = torch.tensor([[[2.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    config = UNetConfig(num_heads=1)
    (share,) = phrase_attention(queries_of(q), [(k, torch.ones(1, 4, dtype=torch.bool))], config)
    e = math.exp(2)
    assert torch.allclose(share, torch.tensor([[[2 * e / (2 * e + 2), 0.5, 0.5, 0.5]]]))


def test_evidence_is_in_standard_deviations_of_noise():
    images, noise = torch.tensor([[[0.2, 0.4, 0.6, 0.8]]]), torch.tensor([[[0.1, 0.3]], [[0.1, 0.3]]])
    found = evidence([images], [noise], queries_of(torch.zeros(1, 4, 2)))
    std = torch.tensor([0.1, 0.3, 0.1, 0.3]).std()
    assert torch.allclose(found, (images - 0.2).reshape(1, 1, 2, 2) / std)


def test_masks_are_1_at_their_peak_and_nothing_below_noise():
    values = torch.tensor([[[4.0, 2.0], [0.0, -3.0]], [[-1.0, -2.0], [-3.0, -4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert torch.equal(masks_of(values)[0], torch.tensor([[1.0, 0.5], [0.0, 0.0]]))
    assert masks_of(values)[1:].eq(0).all()  # no evidence is an empty mask, not a full one
    assert masks_of(torch.tensor([[[1.0, torch.nan], [0.0, 0.0]]])).isnan().any()  # and NaN is not an empty mask


def test_a_peak_is_no_single_stray_position():
    values = torch.zeros(20, 20)
    values[0, 0], values[3:5, 3:5] = 80, 4
    assert peak(values) == (80 + 4 * 4 + 0 * 3) / 8  # 2 % of 400 positions


def affinity() -> torch.Tensor:
    """Four positions: two pairs, a little tied across."""
    near, far, weak = 0.48, 0.46, 0.03
    return torch.tensor([[near, far, weak, weak], [far, near, weak, weak], [weak, weak, near, far],
                         [weak, weak, far, near]])  # fmt: skip


def test_spreading_without_a_cut_is_the_power():
    masks = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert torch.allclose(propagate(masks, affinity(), 3, cut=0.0), masks @ torch.linalg.matrix_power(affinity(), 3).T)


def test_spreading_with_a_cut_fills_the_thing_and_stops_there():
    found = masks_of(propagate(torch.tensor([[1.0, 0.2, 0.1, 0.0]]), affinity(), 8, cut=0.2).reshape(1, 2, 2))
    assert torch.allclose(found, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), atol=0.02)
    plain = propagate(torch.tensor([[1.0, 0.2, 0.1, 0.0]]), affinity(), 8, cut=0.0)
    assert plain.max() < 2 * plain.min()  # which has run out over everything


def test_the_noise_difference_is_a_norm_over_channels():
    conditioning = torch.zeros(2, 4, 5, 5)
    conditioning[1] = torch.tensor([3.0, 4.0, 0.0, 0.0])[:, None, None]
    found = noise_difference(conditioning, torch.zeros(1, 4, 5, 5))
    assert torch.allclose(found, torch.tensor([0.0, 5.0])[:, None, None].expand(2, 5, 5))


def test_layers_with_other_positions_than_their_grid_are_not_taken():
    chosen = plan(MINI, 16, 16)
    outputs = {f"cross {i}": torch.zeros(1, 256, 64) for i in range(5)}
    assert Queries.of(chosen, (16, 16), outputs | {"own q": torch.zeros(1, 128, 64)}).own is None
    assert Queries.of(chosen, (16, 16), outputs | {"cross 3": torch.zeros(1, 64, 64)}) is None
    assert Queries.of(chosen, (16, 16), {}) is None
