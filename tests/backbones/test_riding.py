"""Concepts that ride along with a caption, on tensors small enough to check by hand."""

import pytest
import torch

from ldznet_core.backbones.joint import Call, Concepts, Layout
from ldznet_core.backbones.riding import ride

CAPTION, RIDERS, IMAGE = 3, 4, 6  # rows
CONCEPTS = Concepts(None, ((4,), (5, 6)), CAPTION + RIDERS, CAPTION)  # of the riders the second, and the next two


def attend(q, k, v, rows=None):
    """Attention of [B, heads, L, d], as [B, L, heads d]."""
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def rows(*parts: tuple[int, int]) -> list[int]:
    return [row for start, stop in parts for row in range(start, stop)]


# Where caption, riders and image stand in each order of a joint sequence.
ORDERS = {
    "text first": ((0, 3), (3, 7), (7, 13)),
    "image first": ((6, 9), (9, 13), (0, 6)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_image_and_caption_do_not_see_riders_which_see_themselves_and_the_image(order):
    q, k, v = torch.randn(3, 1, 2, 13, 4, generator=torch.Generator().manual_seed(0))
    caption, riders, image = ORDERS[order]
    layout = Layout(order, False, IMAGE, IMAGE, CONCEPTS)
    output, shown = ride(layout, Call(attend, q, k, v, 2, True), wanted=True)

    plain, seen = sorted(rows(caption, image)), rows(riders, image)
    assert torch.allclose(output[:, plain], attend(q[:, :, plain], k[:, :, plain], v[:, :, plain]))
    of_riders = attend(q[:, :, rows(riders)], k[:, :, seen], v[:, :, seen])
    assert torch.allclose(output[:, rows(riders)], of_riders)
    assert torch.equal(shown.image, output[:, rows(image)])
    assert torch.allclose(shown.text, torch.stack([of_riders[:, 1], of_riders[:, 2:4].mean(1)], dim=1))
    weights = (q[:, :, rows(image)] @ k[:, :, seen].transpose(-1, -2) / 2).softmax(-1).mean(1)  # [1, 6, 10]
    assert torch.allclose(shown.share, torch.stack([weights[..., 1], weights[..., 2:4].mean(-1)], -1), atol=1e-6)
    unread, nothing = ride(layout, Call(attend, q, k, v, 2, True), wanted=False)
    assert nothing is None and torch.equal(unread, output)


def test_in_cross_attention_the_image_sees_the_caption_alone():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, IMAGE, 4, generator=generator)
    k, v = torch.randn(2, 1, 2, CAPTION + RIDERS, 4, generator=generator)
    layout = Layout("cross", False, IMAGE, IMAGE, CONCEPTS)
    output, shown = ride(layout, Call(attend, q, k, v, 2, True), wanted=True)
    assert torch.allclose(output, attend(q, k[:, :, :CAPTION], v[:, :, :CAPTION]))
    weights = (q @ k[:, :, CAPTION:].transpose(-1, -2) / 2).softmax(-1).mean(1)  # [1, 6, 4]
    assert torch.allclose(shown.share, torch.stack([weights[..., 1], weights[..., 2:].mean(-1)], -1), atol=1e-6)
    assert shown.text is None and torch.equal(shown.image, output)


def test_where_text_is_refined_alone_caption_and_concepts_do_not_meet():
    q, k, v = torch.randn(3, 1, 2, CAPTION + RIDERS, 4, generator=torch.Generator().manual_seed(0))
    layout = Layout("text first", False, IMAGE, IMAGE, CONCEPTS)
    output, shown = ride(layout, Call(attend, q, k, v, 2, True), wanted=True)
    parts = [attend(*(x[:, :, part] for x in (q, k, v))) for part in (slice(CAPTION), slice(CAPTION, None))]
    assert shown is None and torch.allclose(output, torch.cat(parts, 1))


def test_the_image_alone_is_left_as_it_is():
    q, k, v = torch.randn(3, 1, 2, IMAGE, 4, generator=torch.Generator().manual_seed(0))
    output, shown = ride(Layout("text first", False, IMAGE, IMAGE, CONCEPTS), Call(attend, q, k, v, 2, True), True)
    assert shown is None and torch.equal(output, attend(q, k, v))
