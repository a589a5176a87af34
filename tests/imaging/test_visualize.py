import numpy as np
import pytest
import torch
from PIL import Image

from ldznet_core.errors import InputError
from ldznet_core.imaging import visualize as pictures
from ldznet_core.imaging.chips import INK, PAPER, text_on
from ldznet_core.imaging.visualize import PALETTE, cut_out, label_map, overlay, panel


def square(height, width, top, left, bottom, right):
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.fixture
def chips(monkeypatch):
    """The labels that an overlay draws, with their places."""
    drawn = []
    chip = pictures.chip

    def record(canvas, place, text, size, colour):
        drawn.append((text, place, colour))
        chip(canvas, place, text, size, colour)

    monkeypatch.setattr(pictures, "chip", record)
    return drawn


def test_cut_out_keeps_colour_and_soft_edge():
    image = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    result = cut_out(image, torch.tensor([[0.2, 1.0]]))
    assert result.mode == "RGBA"
    assert np.asarray(result).tolist() == [[[255, 0, 0, 51], [0, 255, 0, 255]]]


def test_overlay_tints_the_object_and_dims_the_rest():
    image = torch.full((600, 600, 3), 0.8)
    result = overlay(image, square(600, 600, 100, 100, 500, 500)[None], ["box"])
    assert result.size == (600, 600)
    red, _, blue = result.getpixel((130, 130))
    assert blue > red + 20  # the first colour is sky blue
    ground = result.getpixel((20, 20))
    assert max(ground) < 0.8 * 255 and max(ground) - min(ground) <= 1


def test_overlay_edges_are_as_soft_as_the_mask():
    mask = torch.linspace(0, 0.4, 600).expand(600, 600).clone()
    mask[:10, :10] = 1  # found, hence tinted
    row = np.asarray(overlay(torch.full((600, 600, 3), 0.8), mask[None], ["fog"]))[590].astype(int)
    steps = np.diff(row[:, 2])
    assert row[-1, 2] > row[0, 2] + 10 and steps.min() >= 0 and steps.max() <= 1


def test_overlay_draws_a_line_at_the_threshold():
    mask = torch.linspace(0, 1, 600).expand(600, 600)
    row = np.asarray(overlay(torch.zeros(600, 600, 3), mask[None], ["dark"]))[20].astype(int)
    assert abs(int(row[:, 2].argmax()) - 299.5) <= 2


def test_overlay_enlarges_small_pictures_and_keeps_large_ones():
    mask = torch.ones(1, 30, 60)
    assert overlay(torch.rand(30, 60, 3), mask, ["x"]).size == (512, 256)
    assert overlay(torch.rand(20, 700, 3), torch.ones(1, 20, 700), ["x"]).size == (700, 20)


@pytest.mark.parametrize("shape", [(1, 1), (37, 800), (600, 9), (2, 3)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_overlay_survives_extreme_pictures(shape, value):
    overlay(torch.rand(*shape, 3), torch.full((3, *shape), value), ["cat", "a long phrase, very long", ""])


def test_overlay_needs_no_phrase():
    assert overlay(torch.rand(8, 8, 3), torch.zeros(0, 8, 8), []).size == (512, 512)


def test_labels_stay_inside_and_apart(chips):
    everywhere = torch.ones(5, 400, 512)
    overlay(torch.rand(400, 512, 3), everywhere, ["cat", "dog", "red apple", "sky", "grass"])
    places = [place for _, place, _ in chips]
    assert len(places) == 5
    assert all(0 <= p.left and 0 <= p.top and p.right <= 512 and p.bottom <= 400 for p in places)
    assert not any(a.meets(b, gap=0) for i, a in enumerate(places) for b in places[:i])


def test_a_label_is_on_a_large_object_and_beside_a_small_one(chips):
    both = torch.stack([square(600, 600, 250, 20, 580, 580), square(600, 600, 100, 290, 120, 310)])
    overlay(torch.rand(600, 600, 3), both, ["sea", "boat"])
    places = {text: place for text, place, _ in chips}
    assert places["boat"].bottom <= 100
    assert places["sea"].left < 300 < places["sea"].right and places["sea"].top < 415 < places["sea"].bottom


def test_phrases_that_are_not_found_are_listed_in_the_corner_and_leave_no_tint(chips):
    found = square(600, 600, 100, 100, 300, 300)
    soft = torch.stack([found, torch.full((600, 600), 0.4)])
    result = overlay(torch.full((600, 600, 3), 0.8), soft, ["cat", "banana"])
    texts = {text: (place, colour) for text, place, colour in chips}
    place, colour = texts["no banana"]
    assert place.left < 20 and place.bottom > 580 and colour not in PALETTE
    ground = result.getpixel((550, 20))
    assert max(ground) - min(ground) <= 1


def test_a_long_label_is_cut_to_the_picture(chips):
    overlay(torch.rand(300, 512, 3), torch.ones(1, 300, 512), ["a phrase that never ends " * 10])
    [(text, place, _)] = chips
    assert text.endswith("…") and place.right <= 512


def test_text_contrasts_with_every_chip():
    assert text_on((240, 228, 66)) == INK
    assert text_on((0, 114, 178)) == PAPER
    assert text_on(pictures.MISSING) == PAPER


def test_panel_joins_pictures_at_one_height():
    sheet = panel([Image.new("RGB", (40, 20), "red"), Image.new("RGBA", (10, 20))], ["a", "b"], height=100)
    assert sheet.height > 100 and sheet.width > 200 + 50
    assert (255, 0, 0) in [colour for _, colour in sheet.getcolors(100_000)]


def test_refuses_what_does_not_fit_by_shape():
    image = torch.rand(4, 5, 3)
    with pytest.raises(InputError, match=r"\[4, 5, 3\], masks \[2, 4, 5\] and 1 labels"):
        overlay(image, torch.zeros(2, 4, 5), ["cat"])
    with pytest.raises(InputError, match=r"\[1, 4, 5, 3\]"):
        overlay(image[None], torch.zeros(1, 4, 5), ["cat"])
    with pytest.raises(InputError, match=r"\[5, 4\]"):
        cut_out(image, torch.zeros(5, 4))
    with pytest.raises(InputError, match="0 pictures"):
        panel([], [])


def test_a_label_map_has_one_colour_a_phrase_and_a_legend_below(chips):
    labels = torch.zeros(100, 200, dtype=torch.long)
    labels[:50, :100], labels[50:, :100] = 1, 2
    result = label_map(labels, ["cat", "red apple", "dog"])
    assert result.getpixel((10, 10)) == PALETTE[0] and result.getpixel((10, 60)) == PALETTE[1]
    assert result.getpixel((150, 50)) == (0, 0, 0)
    assert [text for text, _, _ in chips] == ["1 cat 25%", "2 red apple 25%", "3 dog 0%"]
    assert all(place.top > 100 and place.right <= 200 and place.bottom < result.height for _, place, _ in chips)
    assert chips[2][2] == pictures.MISSING


def test_a_label_beyond_the_phrases_is_refused():
    with pytest.raises(InputError, match="labels .* of 0 to 1"):
        label_map(torch.full((2, 2), 2), ["cat"])


def test_the_label_maps_of_one_batch_are_of_one_size():
    phrases = ["bus", "butterfly", "dog"]
    sizes = set()
    for share in range(0, 129, 8):
        labels = torch.zeros(128, 128, dtype=torch.long)
        labels[:share] = 1
        sizes.add(label_map(labels, phrases).size)
    assert len(sizes) == 1
