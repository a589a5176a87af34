"""Words shown while they are being drawn: the sampler draws the very same, and the pictures go to the Capture node."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from studio import hooks

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def sent(engine, pack_nodes, monkeypatch):
    """What goes to the page: (picture, metadata) by (picture, metadata)."""
    if importlib.util.find_spec("comfy.patcher_extension") is None:
        pytest.skip("NO PREVIEWS OF WORDS TESTED: this engine has no wrappers; with COMFYUI_PATH they are tested")
    sent = []
    instance = SimpleNamespace(
        sockets_metadata={"page": {"feature_flags": {"supports_preview_metadata": True}}},
        client_id="page",
        last_prompt_id="run",
        send_sync=lambda event, data, client: sent.append((data[0][1], data[1])),
    )
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    monkeypatch.setattr(pack_nodes["LDZNetCapture"], "hidden", SimpleNamespace(unique_id="7"), raising=False)
    return sent


@pytest.fixture
def capture(pack_nodes, mini, core, monkeypatch):
    """MODEL of Capture with words, which are shown at every step."""
    preview = core("backbones.comfy_preview")
    monkeypatch.setattr(preview, "EVERY", 0.0)
    monkeypatch.setattr(preview, "SHARE", float("inf"))

    def run(words, clip=mini.clip):
        return pack_nodes["LDZNetCapture"].execute(mini.model, clip, words).args[0]

    return run


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun"])
def test_the_sampler_draws_the_same(sent, capture, mini, sampler):
    plain = mini.sample(sampler=sampler, seed=3)["samples"]
    assert torch.equal(plain, mini.sample(capture("pumpkin, panda"), sampler=sampler, seed=3)["samples"])
    assert len(sent) == 6 and hooks(mini.unet) == 0


def test_pictures_go_to_the_capture_node_and_mark_the_words(sent, capture, mini, core, monkeypatch):
    seen, module = [], core("segment.preview")
    draw = module.overlay
    monkeypatch.setattr(module, "overlay", lambda *parts: seen.append(parts) or draw(*parts))
    latent = mini.sample(capture("pumpkin, panda"), steps=10)
    assert len(sent) == len(seen) == 10
    for picture, metadata in sent:
        assert picture.size == (512, 512) and metadata["prompt_id"] == "run"
        assert metadata["node_id"] == metadata["display_node_id"] == "7"
    picture, masks, phrases = seen[-1]
    assert picture.shape == (256, 256, 3) and masks.shape == (2, 256, 256) and phrases == ["pumpkin", "panda"]
    drawn, inside = mini.vae.decode(latent["samples"])[0], masks[0] > 0.5
    warm = drawn[..., 0] - drawn[..., 2]  # a pumpkin is, its ground is blue
    assert 0.02 < inside.float().mean() < 0.6 and warm[inside].mean() > warm[~inside].mean() + 0.3


def test_a_batch_and_a_run_without_guidance_show_their_first_picture(sent, capture, mini):
    model = capture("pumpkin")
    mini.sample(model, latent={"samples": torch.zeros(3, 4, 32, 32)})
    mini.sample(model, cfg=1.0)
    assert len(sent) == 12


def test_without_words_nothing_is_shown_and_nothing_watches(sent, capture, mini, pack_nodes):
    mini.sample(capture(""))
    mini.sample(capture(" ", clip=None))
    assert sent == []
    plain = pack_nodes["LDZNetCapture"].execute(mini.model).args[0]
    assert capture("").wrappers.keys() == plain.wrappers.keys()
    assert all("ldznet_preview" not in keys for keys in capture("").wrappers.values())


def test_previews_are_rare(sent, capture, mini, core, monkeypatch):
    monkeypatch.setattr(core("backbones.comfy_preview"), "EVERY", 1000.0)
    mini.sample(capture("pumpkin"))
    assert len(sent) == 1


def test_an_interrupted_run_leaves_nothing(sent, capture, mini, core, monkeypatch):
    class Interrupted(Exception):
        pass

    def send(picture):
        raise Interrupted

    model = capture("pumpkin")
    monkeypatch.setattr(core("segment.preview").WordPreview, "show", lambda *step: send(None))
    with pytest.raises(Interrupted):
        mini.sample(model)
    assert hooks(mini.unet) == 0
    monkeypatch.undo()
    assert torch.equal(mini.sample(seed=1)["samples"], mini.sample(model, seed=1)["samples"])


def test_a_preview_that_fails_does_not_end_the_drawing(sent, capture, mini, core, monkeypatch, caplog):
    def show(*step):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(core("segment.preview").WordPreview, "show", show)
    assert torch.equal(mini.sample()["samples"], mini.sample(capture("pumpkin"))["samples"])
    assert caplog.text.count("no more previews of words in this run: out of memory") == 1


def test_words_need_the_clip(capture, core):
    with pytest.raises(core("errors").InputError, match="clip is empty"):
        capture("pumpkin", clip=None)
