"""`ldznet generate` from end to end, on a model too small to be of any use: what it draws and marks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from terminal import call, done, fail, files, pixels, refused

import ldznet_core.commands.shared
import ldznet_core.hosts.ldm
from ldznet_core import load_host
from ldznet_core.features import overhear
from ldznet_core.queries import SETTLED, plan

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
        monkeypatch.setattr(ldznet_core.hosts.ldm.LDMHost, method, fail(AssertionError(method)))
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
    observe = ldznet_core.hosts.ldm.LDMHost.observe
    for unused in ("encode", "extract", "denoise"):
        monkeypatch.setattr(ldznet_core.hosts.ldm.LDMHost, unused, fail(AssertionError(unused)))

    def record(host, z, *others, **how):
        observed.append(z)
        return observe(host, z, *others, **how)

    monkeypatch.setattr(ldznet_core.hosts.ldm.LDMHost, "observe", record)
    done(capsys, *DRAW, "--method", "attention", "--presence", "0")
    assert len(observed) == 1 and observed[0].std() > 0.9  # pure noise, to compare with


def test_queries_of_the_captions_half_are_taken_while_sampling(here, made):
    host = load_host(made / "mini.safetensors")
    chosen, guided, seen = plan(host.unet_config, 8, 16), host.guided, []
    plain, nothing = host.sample("a cat", 64, 128, seed=2)

    def record(z_t, timesteps, context, taps):
        seen.append((z_t.clone(), timesteps))
        return guided(z_t, timesteps, context, taps)

    host.guided = record
    drawn, queries = host.sample("a cat", 64, 128, seed=2, asked=chosen)
    assert nothing is None and torch.equal(plain, drawn)
    assert len(seen) == ldznet_core.hosts.ldm.STEPS
    assert not any(module._forward_hooks for module in host.model.unet.modules())

    modules, heard = chosen.modules(host.transformer), []
    for z_t, timesteps in seen:
        if timesteps[0] <= SETTLED:
            with torch.inference_mode(), overhear(modules) as one:
                host.model.unet(z_t, timesteps, host.embed(["a cat"]).context)
            heard.append(one)
    assert 1 < len(heard) < len(seen) and len(queries) == 1 and queries.size == (8, 16)
    for i, mean in enumerate(queries.cross):
        assert torch.allclose(mean, sum(one[f"cross {i}"] for one in heard) / len(heard), atol=1e-4)
    assert torch.allclose(queries.own[0], heard[-1]["own q"], atol=1e-4)


def test_generate_finds_nothing(here, capsys):
    status, (line,), errors = call(capsys, *DRAW, "--threshold", "1")
    assert status == 0 and len(errors) == 1 and "nothing was found" in errors[0]
    assert line["composite"] is None and line["inpainted"] is None
    assert files(here / "drawings") == {f"a-cat-0{end}.png" for end in ("", ".dog", ".cat", ".overlay")}


def test_generate_refuses_an_empty_caption(here, capsys):
    refused(capsys, here, "generate", " ", "--text", "cat")
    refused(capsys, here, "generate", "a cat", "--text", "cat", "--replace", " ")
