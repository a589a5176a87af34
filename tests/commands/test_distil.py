"""`ldznet distil` from end to end, on a model too small to draw: its pictures are painted here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import call, files, refused

import ldznet_core.training.drawn
from ldznet_core import load_backbone, load_decoder
from ldznet_core.backbones.torch_ldm import LDMBackbone
from ldznet_core.data.spec import load_data
from ldznet_core.errors import InputError
from ldznet_core.segment.attention import AttentionSegmenter
from ldznet_core.segment.base import MaskPrediction
from ldznet_core.training.distil import better
from ldznet_core.training.drawn import Drawn, moved, write_json
from ldznet_core.training.vocabulary import words_of
from ldznet_core.training.weak_masks import agreed, unsure

OPTIONS = ("--pictures", 8, "--drawing-steps", 2, "--minutes", 0.02, "--nouns", "nouns.txt", "--out", "d.safetensors")


@pytest.fixture
def painted(here, monkeypatch):
    """Whatever is drawn is a red square on grey, and attention sees every noun in its middle."""

    def decode(self, z):
        pictures = torch.full((len(z), 64, 64, 3), 0.5)
        pictures[:, 16:48, 16:48] = torch.tensor((0.9, 0.1, 0.1))
        return pictures

    def attention(self, z, phrases, **_):
        masks = torch.zeros(len(z), len(phrases), 64, 64)
        masks[..., 18:46, 18:46] = 1
        return MaskPrediction(masks, torch.full((len(z), len(phrases)), 9.0))

    monkeypatch.setattr(LDMBackbone, "decode", decode)
    monkeypatch.setattr(AttentionSegmenter, "predict_latent", attention)
    monkeypatch.setattr(ldznet_core.training.drawn, "MOVED", 1.0)
    monkeypatch.setattr(ldznet_core.training.drawn, "EMPTY", 1.0)
    (here / "nouns.txt").write_text("cat\nred apple\napple\ncat and apple\n")
    return here


@pytest.mark.filterwarnings("error:.*not writable")
def test_a_model_alone_becomes_a_decoder(painted, capsys):
    status, (line,), errors = call(capsys, "distil", *OPTIONS)
    assert status == 0, errors
    assert (line["file"], line["kind"], line["scenes"], line["cutouts"]) == ("d.safetensors", "light", 8, 8)
    assert line["natural"] == 2 and line["looks"] > 8
    assert set(line["rounds"]) == {"first", "second"} and line["chosen"] in line["rounds"]
    assert load_decoder("d.safetensors").kind == "light"
    assert {"d/cutouts.png", "d/scenes.png", "d/looks.png", "d/natural.png"} <= files(painted)
    train, val = (load_data("folder:d/drawn", split) for split in ("train", "val"))
    phrases = [{data[i].phrase for i in range(len(data))} for data in (train, val)]
    assert len(phrases[1]) == 1 and not phrases[0] & phrases[1]  # a whole noun is held out
    assert all(train[i].mask.any() for i in range(len(train)))


def test_the_round_that_knows_nouns_best_is_kept():
    first, second = {"metrics": {"miou": 0.5}}, {"metrics": {"miou": 0.4}}
    assert better({"first": first, "second": second}) == "first"
    assert better({"first": second, "second": first}) == "second"
    assert better({"first": {"metrics": {}}, "second": {"metrics": {}}}) == "second"  # nothing was held out


def test_some_drawings_of_every_noun_are_held_out_as_well(drawn):
    numbers = {"cat": range(0, 12), "apple": range(12, 14), "red apple": range(14, 15), "car": range(15, 24)}
    for noun, each in numbers.items():
        for number in each:
            write_json(drawn.folder / "notes" / "cutouts" / f"{number:05}.json",
                       {"noun": noun, "number": number, "reason": ""})  # fmt: skip
    (held_out,) = drawn.held_out
    found = drawn.cutouts
    assert found["nouns"] == {held_out: [*numbers[held_out]]} and held_out not in found["train"] | found["drawings"]
    for noun in {*numbers} - {held_out}:
        kept, rest = found["drawings"].get(noun, []), found["train"][noun]
        assert kept + rest == [*numbers[noun]]  # none lost, none twice
        assert len(kept) == {"cat": 2, "car": 2}.get(noun, 0)  # of three or more drawings


@pytest.fixture
def drawn(painted):
    backbone = load_backbone("mini")
    return Drawn(
        backbone, painted / "out" / "drawn", ("cat", "apple", "red apple", "car"), words_of(backbone), 8, steps=2
    )


def test_a_killed_run_goes_on_where_it_was(drawn, monkeypatch):
    made, scene = [], Drawn.scene

    def stop_at_fourth(self, number):
        made.append(number)
        if len(made) == 4:
            raise KeyboardInterrupt
        return scene(self, number)

    monkeypatch.setattr(Drawn, "scene", stop_at_fourth)
    drawn.begin(resume=False)
    with pytest.raises(KeyboardInterrupt):
        drawn.draw()
    before = {path: path.stat().st_mtime_ns for path in (drawn.folder / "cutouts").iterdir()}
    drawn.begin(resume=True)
    about = drawn.draw()
    assert made == [0, 1, 2, 3, 3, 4, 5, 6, 7] and about["scenes"] == 8
    assert before == {path: path.stat().st_mtime_ns for path in before}
    rows = [json.loads(row) for row in (drawn.folder / "masks.jsonl").read_text().splitlines()]
    assert len({row["mask"] for row in rows}) == len(rows)
    sizes = {Image.open(drawn.folder / row["mask"]).size for row in rows}
    assert sizes == {(64, 64)} and not list(drawn.folder.rglob("*.tmp"))


def test_a_ground_with_a_thing_on_it_is_not_used(drawn, monkeypatch):
    monkeypatch.setattr(ldznet_core.training.drawn, "EMPTY", 0.01)
    assert drawn.ground(0) == {"reason": "the ground is not empty"}


def test_drawings_of_another_run_are_not_mixed_in(drawn, capsys):
    drawn.begin(resume=False)
    with pytest.raises(InputError, match="made with other seed: name the same again"):
        replace(drawn, seed=1).begin(resume=True)
    assert "go on with --resume" in refused(capsys, drawn.folder, "distil", "--out", "out.safetensors")


def test_a_model_that_draws_nothing_of_use_is_told_with_reasons(here, capsys):
    (here / "nouns.txt").write_text("cat\ndog\napple\ncar\n")
    status, _, errors = call(capsys, "distil", *OPTIONS)
    assert status == 2 and "none of 8 drawings could be cut out (" in errors[-1], errors


def test_a_model_that_cannot_draw_is_refused(painted, capsys, monkeypatch):
    monkeypatch.setattr(LDMBackbone, "capabilities", frozenset({"features", "queries"}))
    assert "gives no pictures of its own" in refused(capsys, painted, "distil", *OPTIONS)


def test_nouns_that_are_no_use_are_refused(painted, capsys):
    (painted / "nouns.txt").write_text("cat\n")
    assert "1 nouns are too few" in refused(capsys, painted, "distil", *OPTIONS)
    (painted / "nouns.txt").write_text("\n")
    assert "is empty" in refused(capsys, painted, "distil", *OPTIONS)


def test_unsure_pixels_do_not_count():
    assert unsure(np.array([0.0, 0.39, 0.5, 0.61, 1.0])).tolist() == [0, 0, 128, 255, 255]


def test_pixels_count_where_attention_and_decoder_agree():
    attention, decoder = np.array([0.9, 0.9, 0.1, 0.1, 0.55]), np.array([0.8, 0.2, 0.6, 0.3, 0.55])
    assert agreed(attention, decoder).tolist() == [255, 128, 128, 0, 128]


def test_a_picture_that_changed_has_moved():
    black, white = (np.full((16, 16, 3), value, np.uint8) for value in (0, 255))
    assert moved(black, black) == 0 and moved(black, white) == 1
    half = black.copy()
    half[:8] = 255
    assert moved(black, half) == 0.5
