"""`ldznet train` from end to end, on a model too small to be of any use: what it writes, prints and refuses."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from terminal import call, done, fail, refused

from ldznet_core import cli, load_decoder
from ldznet_core.backbones.torch_ldm import LDMBackbone
from ldznet_core.training import loop
from ldznet_core.training.task import DecoderTask


@pytest.fixture
def masks(here):
    """A folder of pictures with a red and a blue square each, and their masks."""
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.integers(0, 80, (64, 80, 3)).astype(np.uint8)
        for phrase, left, colour in (("red_apple", 4, (220, 30, 30)), ("cat", 44, (30, 30, 220))):
            mask = np.zeros((64, 80), bool)
            mask[16:48, left : left + 32] = True
            image[mask] = colour
            file = here / "data" / "masks" / f"p{number}" / f"{phrase}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
        (here / "data" / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(here / "data" / "images" / f"p{number}.png")
    return here / "data"


SHORT = ("--batch", 2, "--steps", 2, "--validate", 1, "--validation", 1, "--kind", "znet")


def train(capsys, *options, data="folder:data", out="d.safetensors") -> dict:
    (line,) = done(capsys, "train", "--data", data, "--out", out, *SHORT, *options)
    return line


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("kind", ["ldznet", "rgbnet", "light"])
def test_a_folder_of_masks_becomes_a_decoder_that_segments(here, masks, capsys, kind):
    line = train(capsys, "--kind", kind)
    assert (line["file"], line["kind"], line["steps"], line["samples"]) == ("d.safetensors", kind, 2, 4)
    assert line["data"] == {"spec": "folder:data", "examples": 8, "damaged": 0}  # two pictures of six validate
    assert 0 <= line["metrics"]["miou"] <= 1
    info = asdict(load_decoder("d.safetensors").info)
    assert info["metrics"]["validation"] == line["metrics"]
    assert info["training"]["recipe"]["optimiser"]["batch"] == 2 and info["training"]["seed"] == 0
    assert (info["pixels"], info["templates"], info["prediction"]) == (64 * 64, ("{}", "a {}"), "eps")
    assert len(losses(here / "d")) == 2
    assert {"config.toml", "masks-000001.png", "masks-000002.png"} <= {p.name for p in (here / "d").iterdir()}
    (segmented,) = done(capsys, "segment", "a.png", "--text", "cat", "--decoder", "d.safetensors")
    assert Image.open(segmented["phrases"][0]["mask"]).size == (40, 24)


def test_a_printed_configuration_is_that_of_the_run(here, masks, capsys):
    assert cli.main(["train", "--data", "folder:data", "--kind", "znet", "--rate", "0.002", "--print-config"]) == 0
    (here / "run.toml").write_text(capsys.readouterr().out)
    assert not (here / "decoder").exists()
    train(capsys, "--config", "run.toml")
    recipe = load_decoder("d.safetensors").info.training["recipe"]
    assert (recipe["decoder"]["kind"], recipe["optimiser"]["rate"], recipe["optimiser"]["batch"]) == ("znet", 0.002, 2)
    assert recipe["optimiser"]["muon"] > 0  # a small model's recipe


def test_a_run_goes_on_where_it_was_stopped(here, masks, capsys, monkeypatch):
    whole = train(capsys, out="whole.safetensors")
    save, calls = loop.EMA.update, []

    def stopped(self, *values):
        save(self, *values)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.EMA, "update", stopped)
        patch.setattr(loop, "SAVE_EVERY", -1)
        status, lines, errors = call(capsys, "train", "--data", "folder:data", "--out", "parts.safetensors", *SHORT)
        assert (status, lines) == (130, []) and "go on with --resume" in errors[0]
    again = train(capsys, "--resume", out="parts.safetensors")
    assert losses(here / "parts") == losses(here / "whole")
    assert again | {"file": ""} == whole | {"file": ""}


@pytest.mark.parametrize("cache", ["latents", "features"])
def test_a_cache_is_made_once_and_read_from_then_on(here, masks, capsys, monkeypatch, cache):
    options = ("--kind", "ldznet", "--cache", cache, "--cache-folder", "cache", "--validate", 0)
    line = train(capsys, *options)
    assert line["data"]["examples"] == 8 and any((here / "cache" / cache).iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(LDMBackbone, "encode", fail(AssertionError("encoded again")))
        train(capsys, *options, out="again.safetensors")
    assert losses(here / "again") == losses(here / "d")


def test_too_little_memory_says_what_to_lower(here, masks, capsys, monkeypatch):
    monkeypatch.setattr(DecoderTask, "loss", fail(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))
    status, lines, errors = call(capsys, "train", "--data", "folder:data", "--out", "d.safetensors", *SHORT)
    assert (status, lines, len(errors)) == (2, [], 1)
    assert "try --at-once 1 (now 2; the batch of 2 stays the same), or --checkpointing (now off)" in errors[0]


def test_phrases_of_other_pictures_are_absent(here, masks, capsys, monkeypatch):
    seen, original = [], DecoderTask.picture

    def picture(self, step, position):
        seen.extend(sample.example for sample in original(self, step, position))
        return original(self, step, position)

    monkeypatch.setattr(DecoderTask, "picture", picture)
    mask = np.zeros((64, 80), bool)
    mask[:32] = True
    (masks / "masks" / "p9").mkdir()
    Image.fromarray(mask).save(masks / "masks" / "p9" / "red.png")
    shutil.copy(masks / "images" / "p0.png", masks / "images" / "p9.png")
    train(capsys, "--absent", 0.5, "--batch", 8)
    phrases = {Path(e.picture).stem: set() for e in seen}
    for example in seen:
        if not example.mask.any():
            phrases[Path(example.picture).stem].add(example.phrase)
    assert any(phrases.values())  # some phrases are absent,
    assert all(said <= ({"red"} if name != "p9" else {"cat", "red apple"}) for name, said in phrases.items())


def test_early_stopping_keeps_the_best_weights(here, masks, capsys):
    line = train(capsys, "--patience", 1, "--steps", 40, "--validate", 1, "--rate", 1e-9, "--muon", 0)
    assert line["steps"] == 1 and len(losses(here / "d")) == 2  # the second validation gained nothing


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kind", "lightt"), "there is no decoder of kind 'lightt' to train: choose among light, ldznet"),
        (("--batch", "two"), "--batch: 'two' is not a whole number"),
        (("--absent", "1.5"), "absent 1.5 must be less than 1"),
        (("--size", "100"), "size 100 is no multiple of 64: take 64"),
        (("--templates", "a cat"), "must each hold {}"),
        (("--conditions", "prase"), "there is no 'prase': choose among phrase, caption, empty"),
        (("--timesteps", "500,300"), "timesteps [500, 300] must rise"),
        (("--cache", "latents", "--crop"), "crop does not go with cache latents"),
        (("--kind", "znet", "--cache", "features", "--absent", "0.2"), "does not go with features that are cached"),
        (("--checkpointing",), "a light decoder is small and has no checkpointing"),
        (("--data", "folder:nowhere"), "folder:nowhere: there is no such folder"),
    ],
)
def test_wrong_settings_are_refused_by_name(here, masks, capsys, options, words):
    assert words in refused(capsys, here, "train", "--data", "folder:data", "--out", "d.safetensors", *options)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[optimizer]\nbatch = 2", "run.toml: there is no block [optimizer]: did you mean optimiser?"),
        ("[optimiser]\nbach = 2", "run.toml: there is no key 'bach' in [optimiser]: did you mean batch?"),
        ("[optimiser]\nbatch = 2.5", "run.toml: batch must be a whole number, not 2.5"),
        ("[data]\ncrop = 1", "run.toml: crop must be true or false, not 1"),
        ("[data]\nsize = 0", "run.toml: size must be at least 64, not 0"),
        ("data = 'folder:data'", "run.toml: data is a block: write [data]"),
        ("[data", "run.toml cannot be read"),
    ],
)
def test_a_wrong_file_of_settings_is_refused_by_name(here, masks, capsys, text, words):
    (here / "run.toml").write_text(text)
    error = refused(capsys, here, "train", "--data", "folder:data", "--out", "d.safetensors", "--config", "run.toml")
    assert words in error


def test_a_decoder_is_not_replaced_unasked(here, masks, capsys):
    train(capsys)
    error = refused(capsys, here, "train", "--data", "folder:data", "--out", "d.safetensors", *SHORT)
    assert "d.safetensors exists: name another file, go on with --resume, or add --overwrite" in error
    error = refused(capsys, here, "train", "--out", "d.safetensors", "--resume", "--batch", "3")
    assert "has batch 2, not 3" in error
    about = here / "d" / "model.json"
    about.write_text(json.dumps({"name": "another model", "fingerprint": "0"}))
    error = refused(capsys, here, "train", "--out", "d.safetensors", "--resume", "--steps", 3)
    assert "the run in d is for the model another model, and this is another one, test" in error
