"""The miniature's build: the loop saves and resumes, cut-outs are exact, scores are what a hand would count."""

import json
import zipfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from ldznet_core import InputError, cli, load_decoder, load_host
from ldznet_core.mini import build, evaluation
from ldznet_core.mini.decoders import blend
from ldznet_core.mini.denoiser import weight
from ldznet_core.mini.drawing import cut_out
from ldznet_core.mini.loop import PIECE_BYTES, Paused, Plan, read_pieces, train, write_pieces
from ldznet_core.mini.pack import FORMAT
from ldznet_core.mini.recognise import recognise
from ldznet_core.schedule import Schedule

# ---- the loop ----


def test_pieces_are_small_and_read_back_whole(tmp_path):
    tensors = {f"t{i}": torch.full((PIECE_BYTES // 10,), i / 10) for i in range(6)}  # 4 bytes each: 2.4 pieces
    write_pieces(tmp_path, tensors, {"steps": 7})
    pieces = sorted(tmp_path.glob("piece-*.safetensors"))
    assert len(pieces) == 3 and all(p.stat().st_size <= PIECE_BYTES + 10_000 for p in pieces)
    again, about = read_pieces(tmp_path)
    assert about["steps"] == 7 and all(torch.equal(again[k], v) for k, v in tensors.items())
    pieces[1].unlink()
    with pytest.raises(InputError, match="no whole checkpoint"):
        read_pieces(tmp_path)


def line(weights: nn.Linear):
    return lambda progress: (weights(torch.ones(1, 1)) - 3).square().sum()


def test_training_minimises_and_resumes(tmp_path):
    torch.manual_seed(0)
    plan = Plan(0.1, steps=60, warm_up=1, ema=0.5)
    network = nn.Linear(1, 1)
    seen = []

    def loss(progress):
        seen.append(progress)
        return line(network)(progress)

    train(network, loss, replace(plan, steps=30), tmp_path)
    fresh = nn.Linear(1, 1)
    averaged = train(fresh, line(fresh), replace(plan, resume=True), tmp_path)
    assert seen[0] == 0 and 0.9 < seen[-1] < 1 and len(seen) == 30
    assert read_pieces(tmp_path)[1]["steps"] == 60
    fresh.load_state_dict(averaged)
    assert line(fresh)(1).item() < 0.1


def test_a_run_that_must_stop_early_says_so_and_is_saved(tmp_path):
    network = nn.Linear(1, 1)
    with pytest.raises(Paused, match="paused at .* %, go on with --resume"):
        train(network, line(network), Plan(0.1, steps=10**9, stop_after=0.002), tmp_path)
    assert read_pieces(tmp_path)[1]["steps"] > 0


def test_an_interrupted_run_is_saved(tmp_path):
    network, calls = nn.Linear(1, 1), iter([1, 2, 3])

    def loss(progress):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return line(network)(progress)

    with pytest.raises(KeyboardInterrupt):
        train(network, loss, Plan(0.1, steps=10), tmp_path)
    tensors, about = read_pieces(tmp_path)
    assert about["steps"] == 2 and torch.equal(tensors["w.weight"], network.weight)


def test_the_loss_weight_is_soft_min_snr():
    schedule = Schedule.stable_diffusion("v")
    t = torch.tensor([0, 400, 999])
    snr = (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))[t]
    assert torch.allclose(weight(schedule, t), (snr + 1).clamp(max=5) / (snr + 1), rtol=1e-3)


# ---- drawings ----


def disc(ground=(40, 90, 200), colour=(250, 220, 40)) -> np.ndarray:
    image = Image.new("RGB", (64, 64), ground)
    ImageDraw.Draw(image).ellipse((20, 16, 43, 47), fill=colour)
    return np.asarray(image)


def test_a_drawing_is_cut_out_of_its_plain_ground():
    rgba = cut_out(disc())
    assert abs(rgba.shape[0] - 32) <= 2 and abs(rgba.shape[1] - 24) <= 2
    assert rgba[rgba.shape[0] // 2, rgba.shape[1] // 2].tolist() == [250, 220, 40, 255]
    assert (rgba[..., 3] > 127).mean() == pytest.approx(np.pi / 4, abs=0.06)


def test_a_hole_of_the_ground_colour_belongs_to_the_thing():
    picture = disc().copy()
    picture[28:34, 28:34] = (40, 90, 200)
    rgba = cut_out(picture)
    assert rgba[rgba.shape[0] // 2, rgba.shape[1] // 2, 3] == 255


def test_nothing_is_cut_from_an_empty_or_uneven_ground():
    assert cut_out(disc(colour=(40, 90, 200))) is None
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    assert cut_out(noise) is None


def test_recognition_counts_first_and_fifth_guesses():
    scores = torch.tensor([[9, 8, 7, 6, 5, 4.0], [4, 5, 6, 7, 8, 9.0], [1, 2, 3, 4, 5, 6.0]])
    images = np.zeros((3, 64, 64, 3), np.uint8)
    found = recognise(lambda x: scores, images, torch.tensor([0, 1, 0]))
    assert (found.top1, found.top5, found.count) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)


def test_blended_weights_lie_on_the_way_from_first_to_last():
    first, last = nn.Linear(1, 1), nn.Linear(1, 1)
    for weights, value in ((first, 1.0), (last, 3.0)):
        weights.load_state_dict({"weight": torch.full((1, 1), value), "bias": torch.full((1,), -value)})
    blended = blend(first, last, 0.75).state_dict()
    assert blended["weight"].item() == 2.5 and blended["bias"].item() == -2.5


# ---- the whole pipeline, at a size that trains nothing ----


def write_pack(path) -> None:
    """A pack of two nouns drawn here: red discs are cats, blue squares are dogs."""

    def encoded(image: Image.Image, form: str) -> bytes:
        out = BytesIO()
        image.save(out, form, lossless=True)
        return out.getvalue()

    index = {"format": FORMAT, "sprites": [], "backgrounds": []}
    with zipfile.ZipFile(path, "w") as archive:
        for noun, shape, colour in (("cat", "ellipse", "red"), ("dog", "rectangle", "blue")):
            for split, style in (("train", "noto"), ("val", "noto"), ("test", "noto"), ("ood", "openmoji")):
                image = Image.new("RGBA", (48, 48))
                getattr(ImageDraw.Draw(image), shape)((1, 1, 46, 46), fill=colour)
                file = f"{noun}-{split}.webp"
                archive.writestr(file, encoded(image, "WEBP"))
                row = {"file": file, "concept": noun, "noun": noun, "style": style, "split": split}
                index["sprites"].append({**row, "group": "animal", "colour": colour})
        for split in ("train", "val", "test"):
            archive.writestr(f"{split}.jpg", encoded(Image.new("RGB", (64, 64), "green"), "JPEG"))
            index["backgrounds"].append({"file": f"{split}.jpg", "word": "grass", "split": split})
        archive.writestr("index.json", json.dumps(index))


def test_the_build_runs_from_pack_to_bundle(tmp_path, monkeypatch, capsys):
    write_pack(tmp_path / "world.zip")
    settings = build.Settings(64, 2, 1, 1, 1, 2, 8, 8, 1, 2, 2, 1e-3, 1e-3)
    short = build.Build(tmp_path, settings, minutes=0.01, seeds=1)
    monkeypatch.setattr(build, "BUNDLED", tmp_path / "bundled")
    for step in ("vae", "denoiser"):
        getattr(build, step)(short)
    build.decoders(replace(short, minutes=None))
    monkeypatch.setattr(evaluation, "SETS", (evaluation.SEEN,))
    monkeypatch.setattr(build, "EVALUATION_SCENES", 3)
    build.evaluate(short)
    build.bundle(short)

    host = load_host(tmp_path / "bundled" / "mini.safetensors")
    assert host.model.about["nouns"] == ["cat", "dog"]
    decoder = load_decoder(tmp_path / "bundled" / "ldznet.safetensors")
    assert decoder.info.metrics[evaluation.SEEN].keys() == {"miou", "iou_fg", "ap"}
    assert decoder.info.training["steps"] == 2
    assert {p.name for p in tmp_path.glob("*.png")} == {"vae.png", "samples.png"}

    decoders = [str(p) for p in sorted((tmp_path / "decoders").glob("*-0.safetensors"))]
    asked = ["--pack", str(tmp_path / "world.zip"), "--model", str(tmp_path / "bundled" / "mini.safetensors")]
    asked += ["--decoders", *decoders, "--sets", evaluation.SEEN, "--scenes", "2", "--conditions"]
    assert cli.main(["evaluate", *asked, "--markdown"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    methods = [(row[1].strip(), row[2].strip()) for row in rows[2:]]
    assert methods == [
        ("mark everything", "-"), ("rgbnet", "-"), ("znet", "-"),
        ("ldznet", "phrase"), ("ldznet", "caption"), ("ldznet", "empty"),
        ("attention", "empty"), ("attention, captured", "caption"), ("noise", "phrase"),
    ]
    assert {len(row) for row in rows} == {10}
    assert cli.main(["evaluate", *asked, "--method", "znet", "--method", "noise", "--refine"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["method"], row["refined"]) for row in lines] == [
        ("mark everything", False), ("znet", False), ("znet", True), ("noise", False), ("noise", True),
    ]
    assert all(0 <= row["miou"]["mean"] <= 1 and row["samples"] == 4 for row in lines)
    assert cli.main(["evaluate", *asked, "--decoders", decoders[0], "--method", "noise", "--method", "rgbnet"]) == 2
    assert "no decoder of kind rgbnet among 1 files" in capsys.readouterr().err

    with pytest.raises(InputError, match="is missing, run the steps before"):
        build.bundle(replace(short, folder=tmp_path / "elsewhere"))


def test_packs_tell_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no pack at"):
        build.vae(build.Build(tmp_path, build.SETTINGS[128], minutes=0.01))
