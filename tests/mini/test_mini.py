"""The miniature's build: cut-outs are exact, scores are what a hand would count, and the steps run in order."""

import json
import zipfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from ldznet_core import InputError, cli, load_backbone, load_decoder
from ldznet_core.mini import dit, evaluation, steps
from ldznet_core.mini.decoders import blend
from ldznet_core.mini.denoiser import weight
from ldznet_core.mini.drawing import cut_out
from ldznet_core.mini.pack import FORMAT
from ldznet_core.mini.recognise import recognise, single_things, train_classifier, views
from ldznet_core.mini.steps import bundling, mask_decoders
from ldznet_core.networks.schedule import Schedule

# ---- the loss ----


def test_the_loss_weight_is_soft_min_snr():
    schedule = Schedule.stable_diffusion("v")
    t = torch.tensor([0, 400, 999])
    snr = (schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))[t]
    assert torch.allclose(weight(schedule, t), (snr + 1).clamp(max=5) / (snr + 1), rtol=1e-3)


def test_noise_levels_of_the_flow_are_logit_normal_and_evenly_spread():
    torch.manual_seed(0)
    sigma = dit.logit_normal(1000).sort().values
    expected = torch.tensor([-1.0, 0.0, 1.0]).sigmoid()
    assert torch.allclose(sigma[[158, 499, 841]], expected, atol=0.01)


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


def test_views_are_mirrored_turned_and_shifted_copies():
    torch.manual_seed(0)
    picture = torch.zeros(1, 3, 32, 32)
    picture[:, 0, 12:20, 4:12] = 1  # a red square left of the middle
    seen = views(picture.expand(64, -1, -1, -1))
    assert seen.shape == (64, 3, 32, 32) and 0 <= seen.min() and seen.max() <= 1
    assert not seen[:, 1:].any()  # colours stay
    left, right = seen[:, 0, :, :16].sum((1, 2)), seen[:, 0, :, 16:].sum((1, 2))
    assert (left > right).sum().item() in range(20, 45)  # about half of them are mirrored
    white = torch.ones(8, 3, 32, 32)
    torch.testing.assert_close(views(white), white)  # nothing comes in from outside


def test_a_classifier_names_what_it_was_trained_on(tmp_path):
    write_pack(tmp_path / "world.zip")
    nouns = ["cat", "dog"]
    network = train_classifier(tmp_path / "world.zip", nouns, 64, scenes=64, epochs=40)
    unseen = single_things(tmp_path / "world.zip", nouns, ("test",), 20, 64, seed=5)
    assert recognise(network, *unseen).top1 > 0.9


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
    settings = steps.Settings(64, 2, 1, 1, 1, 1, 2, 1, 2, 1, 1, 8, 8, 8, 1, 2, 2, 1e-3, 1e-3, 1, 8, 2)
    short = steps.Build(tmp_path, settings, minutes=0.01, seeds=1)
    monkeypatch.setattr(mask_decoders, "CALIBRATION_SCENES", 3)
    monkeypatch.setattr(bundling, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(dit, "CONFIG", replace(dit.CONFIG, width=64, blocks=2))
    for step in ("vae", "denoiser", "dit"):
        getattr(steps, step)(short)
    steps.decoders(replace(short, minutes=None))
    monkeypatch.setattr(mask_decoders, "run_jobs", lambda work, *given: work(*given))  # processes worked for the others
    steps.light(replace(short, minutes=None))
    steps.grow(short)
    steps.adapt(replace(short, minutes=None))
    monkeypatch.setattr(evaluation, "SETS", (evaluation.SEEN,))
    monkeypatch.setattr(mask_decoders, "EVALUATION_SCENES", 3)
    steps.evaluate(short)
    steps.bundle(short)

    backbone = load_backbone(tmp_path / "bundled" / "mini.safetensors")
    assert backbone.model.about["nouns"] == ["cat", "dog"] and backbone.model.about["size"] == 128
    decoder = load_decoder(tmp_path / "bundled" / "ldznet.safetensors")
    assert decoder.info.metrics[evaluation.SEEN].keys() == {"miou", "iou_fg", "ap"}
    assert decoder.info.training["steps"] == 1 and decoder.info.training["grown"]
    tried = decoder.info.training["blends tried"]
    assert tried.keys() == {"0.25", "0.5", "0.75", "1.0"}
    assert tried[str(decoder.info.training["blend"])] == max(tried.values())
    znet = load_decoder(tmp_path / "bundled" / "znet.safetensors")
    assert znet.decoder_config.grid == 16 and znet.info.training["grown"]
    assert {p.name for p in (tmp_path / "grown" / "decoders").glob("*-0.safetensors")} == {
        "ldznet-0.safetensors", "light-0.safetensors", "rgbnet-0.safetensors", "znet-0.safetensors",
    }
    light = load_decoder(tmp_path / "bundled" / "light.safetensors")
    assert light.info.training["steps"] == 1 and light.info.metrics.keys() == decoder.info.metrics.keys()
    assert {p.name for p in tmp_path.glob("*.png")} == {"vae.png", "samples.png", "samples-dit.png"}
    transformer = load_backbone(tmp_path / "bundled" / "mini-dit.safetensors")
    assert transformer.nouns == ("cat", "dog") and transformer.model.about["trained"]["steps"] >= 1

    decoders = [str(p) for p in sorted((tmp_path / "grown" / "decoders").glob("*-0.safetensors"))]
    asked = ["--pack", str(tmp_path / "world.zip"), "--model", str(tmp_path / "grown" / "mini.safetensors")]
    asked += ["--decoders", *decoders, "--sets", evaluation.SEEN, "--scenes", "2", "--conditions"]
    assert cli.main(["evaluate", *asked, "--markdown"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    methods = [(row[1].strip(), row[2].strip()) for row in rows[2:]]
    assert methods == [
        ("mark everything", "-"), ("rgbnet", "-"), ("znet", "-"),
        ("ldznet", "phrase"), ("ldznet", "caption"), ("ldznet", "empty"),
        ("light", "phrase"), ("light", "caption"), ("light", "empty"),
        ("attention", "empty"), ("attention, captured", "caption"), ("noise", "phrase"),
    ]
    assert len({len(row) for row in rows}) == 1 and rows[0][3].strip() == "mIoU"
    other = [*asked, "--model", str(tmp_path / "bundled" / "mini-dit.safetensors"), "--method", "attention"]
    assert cli.main(["evaluate", *other]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in lines] == ["mark everything", "attention"]
    assert cli.main(["evaluate", *asked, "--method", "znet", "--method", "noise", "--refine"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["method"], row["refined"]) for row in lines] == [
        ("mark everything", False), ("znet", False), ("znet", True), ("noise", False), ("noise", True),
    ]
    assert all(0 <= row["miou"]["mean"] <= 1 and row["samples"] == 4 for row in lines)
    assert cli.main(["evaluate", *asked, "--decoders", decoders[0], "--method", "noise", "--method", "rgbnet"]) == 2
    assert "no decoder of kind rgbnet among 1 files" in capsys.readouterr().err

    with pytest.raises(InputError, match="is missing, run the steps before"):
        steps.bundle(replace(short, folder=tmp_path / "elsewhere"))


def test_packs_tell_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="no pack at"):
        steps.vae(steps.Build(tmp_path, steps.SETTINGS["cpu"], minutes=0.01))
