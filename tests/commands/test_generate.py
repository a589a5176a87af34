"""`ldznet generate` from end to end, on a model too small to be of any use: what it draws and marks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import call, done, fail, files, pixels, refused

import ldznet_core.backbones.sampling
import ldznet_core.backbones.torch_ldm
import ldznet_core.commands.generate
import ldznet_core.commands.shared
from ldznet_core import load_backbone
from ldznet_core.backbones.families.unet import plan
from ldznet_core.backbones.recording import record
from ldznet_core.backbones.step_recorder import SETTLED
from ldznet_core.commands.generate import choose_stem, free_stem

DRAW = ("generate", "a cat", "--text", "dog", "--text", "cat", "--threshold", "0")


def test_generate_writes_everything(here, capsys):
    draw = (*DRAW, "--seed", 3, "--size", "128x64", "--replace", "red apple", "--out", "out")
    (line,) = done(capsys, *draw)
    threshold = line["phrases"][0]["peak"] - 0.01  # so that little is found, whatever the random decoder thinks
    (line,) = done(capsys, *draw, "--threshold", threshold)
    names = {f"a-cat-3{end}.png" for end in ("", ".dog", ".cat", ".overlay", ".composite", ".inpainted")}
    assert files(here / "out") == names
    assert line["caption"] == "a cat" and line["image"] == "out/a-cat-3.png"
    assert 0 < line["mask_seconds"] < line["seconds"]
    drawn, mask = pixels(line["image"]), pixels(line["phrases"][0]["mask"])
    assert drawn.shape == (64, 128, 3) and mask.shape == (64, 128)

    composite = pixels(line["composite"])
    assert (composite[..., :3] == drawn).all() and (composite[..., 3] == mask).all()

    inpainted = pixels(line["inpainted"])
    changed = (inpainted != drawn).any(-1)
    found = torch.from_numpy(mask > threshold * 255 - 1)[None, None].float()
    near = torch.nn.functional.max_pool2d(found, 33, stride=1, padding=16)[0, 0].numpy() > 0
    assert 0 < near.mean() < 1 and changed.any()
    assert not changed[~near].any()


def test_generate_repeats_by_seed(here, capsys):
    for out in ("one", "two"):
        done(capsys, *DRAW, "--out", out)
    done(capsys, *DRAW, "--seed", 1, "--out", "two")
    one, two = here / "one", here / "two"
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files(one))
    assert (two / "a-cat-0.png").read_bytes() != (two / "a-cat-1.png").read_bytes()


def test_generate_takes_its_masks_from_the_drawing(here, capsys, monkeypatch):
    for method in ("encode", "extract"):
        monkeypatch.setattr(ldznet_core.backbones.torch_ldm.LDMBackbone, method, fail(AssertionError(method)))
    done(capsys, *DRAW)


@pytest.mark.parametrize("method", ["znet", "rgbnet"])
def test_generate_with_decoders_that_take_no_features(here, capsys, method):
    assert call(capsys, *DRAW, "--method", method)[0] == 0


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_generate_without_a_decoder_draws_the_same(here, capsys, monkeypatch, method):
    (plain,) = done(capsys, *DRAW, "--out", "plain")
    monkeypatch.setattr(ldznet_core.commands.shared, "load_decoder", fail(AssertionError("a decoder")))
    (line,) = done(capsys, *DRAW, "--out", "free", "--method", method, "--labels", "--refine")
    assert Path(line["image"]).read_bytes() == Path(plain["image"]).read_bytes()
    assert ("presence" in line["phrases"][0]) == (method == "attention")
    assert line["labels"] == "free/a-cat-0.labels.png"
    assert files(here / "free") == files(here / "plain") | {"a-cat-0.labels.png"}
    masks = np.stack([pixels(one["mask"]) for one in line["phrases"]])
    assert masks.max() > 64 and ((masks > 0).sum(0) <= 1).all()


def test_attention_is_taken_from_the_drawing(here, capsys, monkeypatch):
    observed = []
    observe = ldznet_core.backbones.torch_ldm.LDMBackbone.observe
    for unused in ("encode", "extract", "denoise"):
        monkeypatch.setattr(ldznet_core.backbones.torch_ldm.LDMBackbone, unused, fail(AssertionError(unused)))

    def watched(backbone, z, *others, **how):
        observed.append(z)
        return observe(backbone, z, *others, **how)

    monkeypatch.setattr(ldznet_core.backbones.torch_ldm.LDMBackbone, "observe", watched)
    done(capsys, *DRAW, "--method", "attention", "--presence", "0")
    assert len(observed) == 1 and observed[0].std() > 0.9  # pure noise, to compare with


def test_queries_of_the_captions_half_are_taken_while_sampling(here, made):
    backbone = load_backbone(made / "mini.safetensors")
    chosen, guided, seen = plan(backbone.unet_config, 8, 16), backbone.guided, []
    plain, nothing = backbone.sample("a cat", 64, 128, seed=2)

    def watched(z_t, timesteps, context, *rest):
        seen.append((z_t.clone(), timesteps))
        return guided(z_t, timesteps, context, *rest)

    backbone.guided = watched
    drawn, queries = backbone.sample("a cat", 64, 128, seed=2, asked=chosen)
    assert nothing is None and torch.equal(plain, drawn)
    assert len(seen) == ldznet_core.backbones.sampling.STEPS
    assert not any(module._forward_hooks for module in backbone.model.unet.modules())

    modules, outputs = chosen.modules(backbone.transformer), []
    for z_t, timesteps in seen:
        if timesteps[0] <= SETTLED:
            with torch.inference_mode(), record(modules) as one:
                backbone.model.unet(z_t, timesteps, backbone.embed(["a cat"]).context)
            outputs.append(one)
    assert 1 < len(outputs) < len(seen) and len(queries) == 1 and queries.size == (8, 16)
    for i, mean in enumerate(queries.cross):
        assert torch.allclose(mean, sum(one[f"cross {i}"] for one in outputs) / len(outputs), atol=1e-4)
    assert torch.allclose(queries.own[0], outputs[-1]["own q"], atol=1e-4)


def test_generate_finds_nothing(here, capsys):
    status, (line,), errors = call(capsys, *DRAW, "--threshold", "1")
    assert status == 0 and len(errors) == 1 and "nothing was found" in errors[0]
    assert line["composite"] is None and line["inpainted"] is None
    assert files(here / "drawings") == {f"a-cat-0{end}.png" for end in ("", ".dog", ".cat", ".overlay")}


def test_another_drawing_of_the_same_name_is_not_overwritten(here, capsys):
    (first,) = done(capsys, *DRAW)
    before = {file: (here / "drawings" / file).read_bytes() for file in files(here / "drawings")}
    (again,) = done(capsys, *DRAW)
    (other,) = done(capsys, "generate", "A cat!", *DRAW[2:])
    assert first["image"] == again["image"] == "drawings/a-cat-0.png"
    assert other["image"] == "drawings/a-cat-0-2.png"
    assert {other[key].rpartition(".")[0] for key in ("overlay", "composite")} == {
        "drawings/a-cat-0-2.overlay", "drawings/a-cat-0-2.composite"
    }  # fmt: skip
    assert all((here / "drawings" / file).read_bytes() == content for file, content in before.items())


def test_what_stands_in_the_place_of_a_drawing_is_not_overwritten(tmp_path):
    drawing = Image.new("RGB", (2, 2), "red")
    (tmp_path / "a.png").write_text("no picture")
    drawing.save(tmp_path / "a-2.png")
    assert free_stem(tmp_path, "a", drawing) == "a-2"
    assert free_stem(tmp_path, "a", Image.new("RGB", (2, 2))) == "a-3"
    assert free_stem(tmp_path, "b", drawing) == "b"


@pytest.mark.parametrize("caption", ["猫" * 90, "𠀀" * 90, "é" * 90, "a" * 300])
def test_any_caption_gives_a_name_that_the_disk_takes(tmp_path, caption):
    stem = choose_stem(caption, 2**64 - 1, room=100)
    assert len(f"{stem}-999".encode()) <= 100 and stem.endswith(f"-{2**64 - 1}")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(here, capsys, monkeypatch):
    monkeypatch.setattr(ldznet_core.commands.generate, "open_model", None)
    (here / "drawings/a-cat-0.inpainted.png").mkdir(parents=True)
    assert "folder of that name" in refused(capsys, here, *DRAW)


def test_a_drawing_that_is_not_finite_is_no_drawing(here, capsys, monkeypatch):
    nothing = torch.full((1, 64, 64, 3), torch.nan)
    monkeypatch.setattr(ldznet_core.backbones.torch_ldm.LDMBackbone, "decode", lambda *_: nothing)
    assert "--dtype float32" in refused(capsys, here, *DRAW)


def test_generate_refuses_an_empty_caption(here, capsys):
    refused(capsys, here, "generate", " ", "--text", "cat")
    refused(capsys, here, "generate", "a cat", "--text", "cat", "--replace", " ")


def test_a_region_is_drawn_by_its_caption(here, capsys):
    for out, region in (("plain", ()), ("region", ("--region", "cat=red apple")), ("two", ("--region", "cat | dog=x"))):
        done(capsys, *DRAW, "--out", out, *region)
    plain, region, two = (pixels(f"{out}/a-cat-0.png") for out in ("plain", "region", "two"))
    assert (plain != region).any() and (region != two).any()


@pytest.mark.parametrize("text", ["cat", "=cat", "cat=", " | =cat", "cat= "])
def test_what_is_no_region_is_refused(here, capsys, text):
    assert "is no region such as 'balloon=a strawberry'" in refused(capsys, here, *DRAW, "--region", text)
