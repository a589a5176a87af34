"""Words in a prompt and shares of attention, on tensors small enough to check by hand."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldznet_core.backbones.families.dit import FAMILIES, family_of, patch_side, spaced
from ldznet_core.backbones.joint import Call, Concepts, Layout, prompt_of, spans
from ldznet_core.errors import InputError


def words(text: str) -> list[str]:
    return ["<s>", *re.findall(r"\w+|[^\w\s]", text), "</s>", "<pad>"]


def attend(q, k, v):
    """Attention of [B, heads, L, d], as [B, L, heads d]."""
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2), weights


def test_words_are_found_in_the_prompt_that_names_them():
    assert prompt_of(["cat", "red hat"]) == "cat, red hat."
    # <s> cat , red hat . </s>
    assert spans(words, ["cat", "red hat"]) == ((1,), (3, 4), (5,))


def test_words_are_found_in_the_template_of_a_chat():
    def chat(text: str) -> list[str]:
        return ["<system>", "be", "brief", "<user>", *words(text)[1:-2], "<assistant>"]

    assert spans(chat, ["cat", "red hat", "cat"]) == ((4,), (6, 7), (9,), (10,))


def test_a_phrase_without_tokens_is_refused():
    with pytest.raises(InputError, match="'' has no words that the text encoder knows"):
        spans(words, ["cat", ""])


@pytest.mark.parametrize("layout", ["split", "flat", "four"])
def test_shares_are_the_attention_that_goes_to_the_words_whatever_the_layout(layout):
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    weights = attend(q, k, v)[1].mean(1)  # [1, 5, 5]
    split = layout == "split"
    given = {"split": v, "flat": v.transpose(1, 2).flatten(2), "four": v.transpose(1, 2)}[layout]

    def host(_q, _k, values, rows):
        if layout == "flat":
            values = values.unflatten(-1, (2, 4)).transpose(1, 2)
        return attend(q, k, values if layout != "four" else values.transpose(1, 2))[0]

    expected = torch.stack([weights[..., 1], weights[..., 2:4].mean(-1)], dim=-1)
    assert torch.allclose(Call(host, q, k, given, 2, split).shares([[1], [2, 3]]), expected, atol=1e-6)


def test_there_may_be_more_concepts_than_channels_of_a_head():
    q, k, v = torch.randn(3, 1, 1, 6, 2, generator=torch.Generator().manual_seed(0))
    found = Call(plain, q, k, v, 1, True).shares([[i] for i in range(6)])
    assert torch.allclose(found, attend(q, k, v)[1][:, 0], atol=1e-6)


def plain(q, k, v, rows):
    return attend(q, k, v)[0]


CONCEPTS = Concepts(None, ((1,), (2, 3)), 5)


@pytest.mark.parametrize("order, left_padded, queries, keys, image, first", [
    ("text first", False, 5 + 6, 5 + 6, (5, 11), 0),
    ("text first", True, 8 + 6, 8 + 6, (8, 14), 3),  # three rows of padding before the five of the prompt
    ("image first", False, 6 + 5, 6 + 5, (0, 6), 6),
    ("cross", False, 6, 5, (0, 6), 0),
])  # fmt: skip
def test_image_and_words_are_found_in_the_sequence(order, left_padded, queries, keys, image, first):
    assert Layout(order, left_padded, 6, 6, CONCEPTS).places(queries, keys) == (slice(*image), first)


@pytest.mark.parametrize("order, queries, keys", [
    ("text first", 6, 6),  # the image alone
    ("text first", 8, 8),  # a text that is shorter than the prompt
    ("cross", 7, 5),  # not this image
    ("cross", 6, 3),  # not this text
])  # fmt: skip
def test_other_calls_of_attention_are_passed_over(order, queries, keys):
    assert Layout(order, False, 6, 6, CONCEPTS).places(queries, keys) is None


def test_filling_behind_the_image_is_left_out():
    assert Layout("text first", False, 6, 8, CONCEPTS).places(5 + 8, 5 + 8) == (slice(5, 11), 0)


def test_a_call_shows_shares_and_outputs_of_image_and_words():
    q, k, v = torch.randn(3, 1, 2, 5 + 6, 4, generator=torch.Generator().manual_seed(0))
    output, weights = attend(q, k, v)
    layout = Layout("text first", False, 6, 6, CONCEPTS)
    call = Call(plain, q, k, v, 2, True)
    shown = layout.read(call, output)
    assert torch.equal(shown.image, output[:, 5:])
    assert torch.allclose(shown.text, torch.stack([output[:, 1], output[:, 2:4].mean(1)], dim=1))
    assert torch.allclose(shown.share[..., 0], weights.mean(1)[:, 5:, 1], atol=1e-6)
    assert Layout("cross", False, 11, 11, CONCEPTS).read(call, output).text is None


def test_blocks_are_spread_over_their_band():
    assert spaced(19, 0.79, 1.0) == (15, 16, 17, 18)
    assert spaced(24, 0.33, 0.5) == (7, 8, 10, 11)
    assert spaced(2, 0.5, 0.75) == (1,) and spaced(1, 0.9, 1.0) == (0,)


def test_a_network_is_known_by_its_parts():
    class Network(nn.Module):
        def __init__(self, *parts: str):
            super().__init__()
            for part in parts:
                setattr(self, part, nn.ModuleList([nn.Linear(1, 1)]))

    small = Network("joint_blocks", "context_embedder")
    assert family_of(small).name == "Miniature" and family_of(small).chosen(small) == (0,)
    small.joint_blocks.extend(nn.Linear(1, 1) for _ in range(3))
    assert family_of(small).chosen(small) == (0, 1, 2, 3)
    small.joint_blocks.append(nn.Linear(1, 1))
    assert family_of(small).name == "Stable Diffusion 3" and family_of(small).chosen(small) == (1, 2)
    assert family_of(Network("joint_blocks")) is None and family_of(nn.Linear(1, 1)) is None
    video = Network("double_blocks", "single_blocks", "pe_embedder", "vector_in")
    assert family_of(video).name == "Flux"
    video.double_blocks[0].flipped_img_txt = True  # HunyuanVideo
    assert family_of(video) is None
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_patches_are_read_however_a_network_counts_them():
    assert [patch_side(SimpleNamespace(patch_size=size)) for size in (2, (1, 2, 2), 1)] == [2, 2, 1]
    assert patch_side(SimpleNamespace(patch_spatial=4)) == 4
