"""A folder of 20 pictures and a reduced model of each family become a decoder that segments and loads in ComfyUI."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from seeded import seed_weights
from terminal import done

from ldznet_core import load_backbone, load_decoder
from ldznet_core.checkpoints.diffusers_folder import unet_config
from ldznet_core.networks.unet import UNet

pytest.importorskip("diffusers")
from diffusers_models import UNETS, save_model  # noqa: E402


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request, made, tmp_path_factory):
    family = request.param
    ours = seed_weights(UNet(unet_config({"in_channels": 4, "out_channels": 4, **UNETS[family]})), 0)
    return save_model(tmp_path_factory.mktemp("models") / family, family, ours, made / "tokenizer"), ours


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    rng = np.random.default_rng(0)
    for number in range(20):
        for part in ("images", f"masks/p{number}"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"p{number}.png")
        Image.fromarray(rng.random((64, 64)) > 0.5).save(folder / f"masks/p{number}/cat.png")
    return folder


def test_a_decoder_starts_from_the_weights_of_any_model(model):
    """Every tensor of diffusers' UNet is found again under LDM's name."""
    folder, ours = model
    theirs = load_backbone(folder).ldm_unet().state_dict()
    assert theirs.keys() == ours.state_dict().keys()
    assert all(torch.equal(theirs[name], value) for name, value in ours.state_dict().items())


@pytest.mark.usefixtures("as_comfyui_runs_nodes")
@pytest.mark.parametrize(
    ("kind", "options", "conditions"),
    [
        ("light", (), {"empty": 0.7, "caption": 0.3}),
        ("ldznet", ("--kind", "ldznet", "--checkpointing"), {"phrase": 1.0}),
    ],
)
def test_a_folder_of_20_pictures_becomes_a_decoder(
    model, masks, pack_nodes, tmp_path, monkeypatch, capsys, kind, options, conditions
):
    folder, _ = model
    monkeypatch.chdir(tmp_path)
    with torch.inference_mode(False):
        (line,) = done(
            capsys, "train", "--model", folder, "--data", f"folder:{masks}", "--out", "d.safetensors",
            "--batch", 2, "--steps", 1, "--validation", 1, *options,
        )  # fmt: skip
    assert line["family"] == folder.name and line["steps"] == 1 and "miou" in line["metrics"]
    recipe = load_decoder("d.safetensors").info.training["recipe"]
    assert recipe["decoder"]["conditions"] == conditions
    (segmented,) = done(
        capsys, "segment", masks / "images" / "p0.png", "--text", "cat", "--model", folder, "--decoder", "d.safetensors"
    )
    assert Image.open(segmented["phrases"][0]["mask"]).size == (64, 64)

    import folder_paths

    place = tmp_path / "models"
    place.mkdir()
    shutil.copy("d.safetensors", place / "mine.safetensors")
    folder_paths.add_model_folder_path("ldznet", str(place))
    try:
        schema = pack_nodes["LDZNetLoadDecoder"].define_schema()
        assert "mine.safetensors" in schema.inputs[0].options
        decoder, info = pack_nodes["LDZNetLoadDecoder"].execute("mine.safetensors").args
    finally:
        folder_paths.folder_names_and_paths["ldznet"][0].remove(str(place))
    lines = info.splitlines()
    assert lines[0].startswith(f"{kind} for models of family {folder.name}, context width")
    assert lines[2] == f"trained on folder:{masks}, {line['data']['examples']} examples, 1 steps"
    assert lines[3] == f"mIoU {line['metrics']['miou']:.3f} (validation)"
    assert json.dumps(line)
