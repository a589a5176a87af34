"""`ldznet sweep` on a folder of masks, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image
from terminal import call, done, files, refused

from ldznet_core.backbones.torch_ldm import LDMBackbone

SMALL = ("--timesteps", "300,500", "--seeds", "1", "--train", "4", "--val", "2", "--steps", "2", "--device", "cpu")


@pytest.fixture
def masks(here):
    """Four pictures to train on and two to validate on, each half of it a cat."""
    folder = here / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    lines = []
    for i, split in enumerate(["train"] * 4 + ["val"] * 2):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        lines.append({"image": f"images/{i}.png", "mask": f"masks/{i}.png", "phrase": "cat", "split": split})
    (folder / "masks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_sweep_of_a_folder_of_masks(capsys, here, masks):
    *cells, end = done(capsys, "sweep", "--data", f"folder:{masks}", "--out", "out", *SMALL)
    assert [(cell["timestep"], cell["seed"]) for cell in cells] == [(300, 0), (500, 0)]
    assert end["best"]["block"] in {cell["best"] for cell in cells}
    assert set(end["grids"]) == {"8x8", "4x4", "2x2", "1x1"}
    assert {"sweep.json", "sweep.png", "sweep.svg"} <= files(here / "out")
    numbers = json.loads((here / "out" / "sweep.json").read_text())
    assert len(numbers["rows"]) == 17 * 2 and numbers["swept"]["condition"] == "phrase"
    status, lines, errors = call(capsys, "sweep", "--data", f"folder:{masks}", "--out", "out", *SMALL)
    assert status == 2 and "go on with --resume" in errors[0]
    assert done(capsys, "sweep", "--data", f"folder:{masks}", "--out", "out", *SMALL, "--resume") == [*cells, end]


@pytest.mark.parametrize(
    "options, reason",
    [
        ((), "give --data SPEC or"),
        (("--data", "folder:data", "--timesteps", "0..500"), "names no timesteps of 1 to 1000"),
        (("--data", "folder:data", "--timesteps", "soon"), "names no timesteps of 1 to 1000"),
        (("--data", "folder:data", "--blocks", "input_blocks.3"), "no spatial transformer in 'input_blocks.3'"),
        (("--data", "folder:data", "--size", "100"), "--size 100 is not a multiple of 64: try 64"),
        (("--data", "folder:nowhere"), "there is no such folder"),
        (("--pack", "world.zip"), "does not know the miniature's world"),
    ],
)
def test_bad_input_is_refused(capsys, here, masks, options, reason):
    assert reason in refused(capsys, here, "sweep", "--out", "out", *options)


def test_a_model_without_feature_maps_is_refused(capsys, here, masks, monkeypatch):
    monkeypatch.setattr(LDMBackbone, "capabilities", frozenset({"denoise"}))
    error = refused(capsys, here, "sweep", "--out", "out", "--data", f"folder:{masks}")
    assert "gives no feature maps of a UNet" in error
