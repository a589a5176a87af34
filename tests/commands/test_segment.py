"""`ldznet segment` from end to end, on a model too small to be of any use: what it writes and prints."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import call, done, fail, picture, pixels, refused, results

import ldznet_core.commands.segment
import ldznet_core.commands.shared


def test_segment_writes_what_it_prints(here, capsys):
    (line,) = done(capsys, "segment", "a.png", "--text", "cat", "--text", "red apple | cat")
    assert line["image"] == "a.png" and line["seconds"] > 0
    assert [p["text"] for p in line["phrases"]] == ["cat", "red apple", "cat"]
    assert [p["mask"] for p in line["phrases"]] == [f"masks/a.{n}.png" for n in ("cat", "red-apple", "cat-2")]
    assert results(here / "masks") == {"a.cat.png", "a.red-apple.png", "a.cat-2.png", "a.overlay.png"}
    for phrase in line["phrases"]:
        mask = Image.open(phrase["mask"])
        assert mask.mode == "L" and mask.size == (40, 24)
        values = np.asarray(mask) / 255
        assert abs((values > 0.5).mean() - phrase["coverage"]) < 0.02
        assert abs(values.max() - phrase["peak"]) < 0.003
    assert line["overlay"] == "masks/a.overlay.png"


def test_threshold_decides_coverage(here, capsys):
    for threshold, coverage in ((0, 1), (1, 0)):
        (line,) = done(capsys, "segment", "a.png", "--text", "cat", "--threshold", threshold)
        assert line["phrases"][0]["coverage"] == coverage


@pytest.mark.parametrize("method", ["ldznet", "znet", "rgbnet", "attention", "noise"])
def test_every_method(here, capsys, method):
    (line,) = done(capsys, "segment", "a.png", "--text", "cat", "--method", method)
    assert Image.open(line["phrases"][0]["mask"]).size == (40, 24)
    assert ("presence" in line["phrases"][0]) == (method == "attention")


def test_tiles_matter_in_large_pictures(here, capsys):
    def mask(size, *options):
        picture(here / "b.png", size)
        done(capsys, "segment", "b.png", "--text", "cat", "--method", "attention", *options)
        return pixels("masks/b.cat.png")

    assert (mask((96, 64), "--tiles") != mask((96, 64))).any()
    assert (mask((60, 64), "--tiles") == mask((60, 64))).all()


def test_seed_and_condition_matter_and_repeat(here, capsys):
    def mask(*options):
        done(capsys, "segment", "a.png", "--text", "cat", *options)
        return Path("masks/a.cat.png").read_bytes()

    options = ((), ("--seed", 1), ("--timestep", 300), ("--condition", "empty"), ("--caption", "red apple"))
    masks = [mask(*option) for option in options]
    assert masks == [mask(*option) for option in options]
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("method", ["ldznet", "attention", "noise"])
def test_bfloat16(here, capsys, method):
    done(capsys, "segment", "a.png", "--text", "cat", "--dtype", "bfloat16", "--method", method)


@pytest.mark.parametrize(
    "name, size, mode",
    [
        ("dot.png", (1, 1), "RGB"),
        ("long.png", (8000, 37), "RGB"),
        ("grey.png", (30, 20), "L"),
        ("cmyk.jpg", (30, 20), "CMYK"),
        ("palette.gif", (30, 20), "P"),
    ],
)
def test_any_picture_gets_a_mask_of_its_size(here, capsys, name, size, mode):
    picture(here / name, size, mode)
    (line,) = done(capsys, "segment", name, "--text", "cat")
    assert Image.open(line["phrases"][0]["mask"]).size == size


def test_deep_transparent_animated_and_turned_pictures(here, capsys):
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save("deep.png")
    Image.new("RGBA", (30, 20), (255, 0, 0, 60)).save("clear.png")
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    Image.new("RGB", (20, 30), "red").save("turned.jpg", exif=turned)
    names = ("deep.png", "clear.png", "moving.gif", "turned.jpg")
    lines = done(capsys, "segment", *names, "--text", "cat")
    assert [line["image"] for line in lines] == list(names)
    for line in lines:
        assert Image.open(line["phrases"][0]["mask"]).size == (30, 20)


def test_a_phrase_of_500_words_is_cut_with_a_warning(here, capsys):
    status, (line,), errors = call(capsys, "segment", "a.png", "--text", "cat " * 500)
    assert status == 0 and len(errors) == 1 and "75 tokens" in errors[0]
    assert Image.open(line["phrases"][0]["mask"]).size == (40, 24)


def test_pictures_of_one_name_do_not_overwrite_each_other(here, capsys):
    paths = []
    for folder in ("x", "y"):
        (here / folder).mkdir()
        paths.append(picture(here / folder / "b.png"))
    lines = done(capsys, "segment", *paths, "--text", "cat", "--out", "out")
    assert [line["phrases"][0]["mask"] for line in lines] == ["out/b.cat.png", "out/b-2.cat.png"]
    assert len(results(here / "out")) == 4


def test_good_pictures_are_done_beside_a_bad_one(here, capsys):
    picture(here / "c.png")
    status, lines, errors = call(capsys, "segment", "a.png", "gone.png", "c.png", "--text", "cat")
    assert status == 2 and [line["image"] for line in lines] == ["a.png", "c.png"]
    assert len(errors) == 1 and "gone.png" in errors[0] and errors[0].startswith("ldznet: ")


# ---- segment: no decoder, edges, labels ----

ATTENTION = ("segment", "a.png", "--method", "attention", "--presence", "0")


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_any_checkpoint_is_read_without_a_decoder(here, made, capsys, monkeypatch, method):
    (here / "model").mkdir()
    shutil.copy(made / "mini.safetensors", "model/other.safetensors")
    shutil.copytree(made / "tokenizer", "model/tokenizer")
    monkeypatch.setattr(ldznet_core.commands.shared, "load_decoder", fail(AssertionError("a decoder")))
    segment = ("segment", "a.png", "--text", "cat", "--model", "model/other.safetensors")
    done(capsys, *segment, "--method", method)
    assert "--method attention" in refused(capsys, here, *segment)


def test_how_attention_is_read_matters_and_repeats(here, capsys):
    def mask(options):
        done(capsys, *ATTENTION, "--text", "cat", *options.split())
        return Path("masks/a.cat.png").read_bytes()

    options = ("", "--seed 1", "--timestep 300", "--samples 2", "--caption apple", "--spread stuff")
    masks = [mask(option) for option in options]
    assert len(set(masks)) == len(masks)
    assert masks[0] == mask("--seed 0 --timestep 100 --samples 1 --spread auto")


# To a random model a phrase makes next to no difference: noise shows the rounding of batches of other sizes.
@pytest.mark.parametrize(("method", "close"), [("attention", 1e-4), ("noise", 0.05)])
def test_phrases_do_not_change_each_other(here, capsys, monkeypatch, method, close):
    drawn = []
    draw = ldznet_core.commands.segment.draw

    def record(image, masks, *others):
        drawn.append(masks)
        return draw(image, masks, *others)

    monkeypatch.setattr(ldznet_core.commands.segment, "draw", record)
    phrases = ["cat", "red apple", "dog", "a", "apple cat red", "grass", "red cat", "a photo of a cat"]
    presence = ("--presence", "0") if method == "attention" else ()
    for conditioning in (" | ".join(phrases), *phrases):
        done(capsys, "segment", "a.png", "--text", conditioning, "--method", method, *presence)
    together, *alone = drawn
    assert len(together) == 8 and together.amax((1, 2)).min() > 0.5
    assert (together - torch.cat(alone)).abs().max() < close


def test_what_has_too_little_presence_has_an_empty_mask(here, capsys):
    def phrases(presence):
        (line,) = done(capsys, *ATTENTION, "--text", "cat | red apple | dog", "--presence", presence)
        return line["phrases"]

    everything = phrases(0)
    between = sorted(one["presence"] for one in everything)[1]
    for before, after in zip(everything, phrases(between - 1e-3), strict=True):
        assert before["presence"] == after["presence"] and before["peak"] > 0.5
        assert (after["peak"] == 0) == (pixels(after["mask"]).max() == 0) == (before["presence"] < between)
    assert [one["peak"] for one in phrases("inf")] == [0, 0, 0]


@pytest.mark.parametrize("method", ["ldznet", "attention", "noise"])
def test_refined_edges_are_others(here, capsys, method):
    def mask(*options):
        done(capsys, "segment", "a.png", "--text", "cat", "--method", method, *options)
        return pixels("masks/a.cat.png")

    assert (mask() != mask("--refine")).any()


@pytest.mark.parametrize("method", ["ldznet", "attention"])
def test_with_labels_no_pixel_belongs_to_two_phrases(here, capsys, method):
    segment = ("segment", "a.png", "--text", "cat | red apple | labels", "--method", method, "--refine")
    (line,) = done(capsys, *segment)
    assert "labels" not in line
    alone = np.stack([pixels(one["mask"]) for one in line["phrases"]])
    (line,) = done(capsys, *segment, "--labels")
    assert [one["mask"] for one in line["phrases"]] == [f"masks/a.{n}.png" for n in ("cat", "red-apple", "labels-2")]
    kept = np.stack([pixels(one["mask"]) for one in line["phrases"]])
    assert ((alone > 0).sum(0) > 1).any() and ((kept > 0).sum(0) <= 1).all()
    assert (kept.max(0) == alone.max(0)).all()
    assert line["labels"] == "masks/a.labels.png"
    assert Image.open(line["labels"]).width > 2 * 512


@pytest.mark.parametrize("size", [(1, 1), (8000, 37), (37, 4000)])
def test_labels_of_one_phrase_and_of_any_picture(here, capsys, size):
    picture(here / "odd.png", size)
    (line,) = done(capsys, "segment", "odd.png", "--text", "cat", "--labels")
    assert Image.open(line["labels"]).width > 2 * size[0]


def test_the_miniatures_own_attention_finds_things(tmp_path, capsys):
    park = Path(__file__).parents[2] / "docs" / "pictures" / "park.png"
    places = {"panda": (18, 112, 136, 222), "pumpkin": (134, 22, 240, 126), "ladybug": (152, 138, 240, 228)}
    texts = [word for name in places for word in ("--text", name)]
    options = ("--method", "attention", "--refine", "--labels", "--out", tmp_path)
    (line,) = done(capsys, "segment", park, *texts, *options)
    for phrase, (left, top, right, bottom) in zip(line["phrases"], places.values(), strict=True):
        mask = pixels(phrase["mask"]) > 127
        inside = mask[top:bottom, left:right]
        assert phrase["presence"] > 2 and inside.mean() > 0.3 and inside.sum() > 0.7 * mask.sum()
