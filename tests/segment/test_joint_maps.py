"""Masks from a transformer's attention, on tensors small enough to check by hand."""

import pytest
import torch

from ldznet_core.backbones.joint import BlockAttention
from ldznet_core.segment.joint_maps import competition, evidence, features, keep_alike, scores, similarity


def test_concepts_compete_for_the_attention_that_goes_to_them():
    share = torch.tensor([[[0.1, 0.3], [0.2, 0.2], [0.0, 0.0]]])  # [1, 3, 2]
    assert torch.allclose(competition(share), torch.tensor([[[0.25, 0.5, 0.0], [0.75, 0.5, 0.0]]]))


def test_similarity_is_to_a_concept_rather_than_to_all():
    image = torch.tensor([[[3.0, 1.0], [1.0, 3.0]]])
    text = torch.tensor([[[5.0, 4.0], [4.0, 5.0]]])  # alike but for their difference
    assert torch.allclose(similarity(image, text), torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]), atol=1e-6)


@pytest.mark.parametrize("read, told", [("attention", 1), ("outputs", 1), ("both", 2)])
def test_a_block_tells_what_it_is_asked(read, told):
    image = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    with_text = BlockAttention(torch.full((1, 4, 2), 0.5), image, image[:, :2])
    assert len(scores(with_text, read)) == told
    without = BlockAttention(with_text.share, image, None)
    assert len(scores(without, read)) == 1  # attention alone is there


def test_evidence_is_zero_on_average_on_noise_and_counts_its_deviations():
    share = torch.tensor([[[0.4, 0.6], [0.6, 0.4]], [[0.4, 0.6], [0.6, 0.4]]])  # [2, 2, 2]: 0.5 and 0.1155 about it
    noise = [BlockAttention(share, torch.zeros(2, 2, 1), None)]
    assert evidence(noise, noise).mean(-1).abs().max() < 1e-6
    image = [BlockAttention(torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]), torch.zeros(1, 2, 1), None)]
    deviation = torch.tensor([0.4, 0.6, 0.4, 0.6]).std()
    assert torch.allclose(evidence(image, noise)[0, 0], torch.tensor([0.0, 0.4 / float(deviation)]), atol=1e-5)


def test_features_have_unit_length_and_no_mean_direction():
    outputs = torch.tensor([[[10.0, 1.0], [10.0, -1.0]]])
    assert torch.allclose(features(outputs), torch.tensor([[[0.0, 1.0], [0.0, -1.0]]]))


def test_a_mask_stays_where_it_looks_like_its_strongest_part():
    looks = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)  # four of one kind, four of another
    masks = torch.tensor([[1.0, 0.5, 0.5, 0.25, 0.5, 0.25, 0.0, 0.0], [0.0] * 8])
    expected = torch.tensor([[1.0, 0.5, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0], [0.0] * 8])
    assert torch.allclose(keep_alike(masks, [looks, 3 * looks]), expected, atol=1e-6)
