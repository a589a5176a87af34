"""A sweep's cells: which maps they are made of, and that a run that was stopped ends as one that was not."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet_core import InputError, load_backbone
from ldznet_core.data.base import Example
from ldznet_core.evaluation import sweep
from ldznet_core.evaluation.sweep_figure import draw
from ldznet_core.imaging.figure import heat
from ldznet_core.networks.precision import half_precision

BLOCKS = ("input_blocks.1", "middle_block")
SETTINGS = sweep.Settings(
    "test", "data", BLOCKS, (300, 1000), seeds=2, train=3, validation=2, steps=2, size=64, condition="phrase"
)


def example(phrase: str, seed: int, size: int = 64) -> Example:
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), bool)
    mask[: size // 2] = True
    return Example(phrase, mask, rng.integers(0, 255, (size, size, 3)).astype(np.uint8), picture=str(seed))


EXAMPLES = [example("cat", 0), example("red apple", 1), example("apple", 2)]
PARTS = (EXAMPLES, EXAMPLES[:2])


class Faulty(list):
    """A data set whose first example is damaged."""

    def __getitem__(self, index):
        if index == 0:
            raise InputError("a.png is damaged")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module")
def encoded(backbone):
    return sweep.subset(backbone, EXAMPLES)


def run(backbone, folder) -> dict:
    cells = {(seed, t): cell for seed, t, cell in sweep.sweep(backbone, PARTS, SETTINGS, folder)}
    sweep.report(SETTINGS, cells, backbone.unet_config, folder)
    return json.loads((folder / "sweep.json").read_text())


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(backbone, folder)


# ---- examples ----


def test_examples_are_resized_and_those_of_absent_phrases_and_damaged_ones_left_out(caplog):
    absent = replace(example("dog", 3), mask=np.zeros((64, 64), bool))
    data = Faulty([example("cat", 0), example("apple", 1, size=128), absent])
    (chosen,) = sweep.choose(data, 2, 64, seed=0)
    assert chosen.phrase == "apple" and chosen.image.shape == (64, 64, 3)
    with pytest.raises(InputError, match="no phrase of the data is in its picture"):
        sweep.choose([absent], 2, 64, seed=0)


def test_no_example_is_drawn_twice():
    phrases = [e.phrase for e in sweep.choose([example(str(i), i) for i in range(6)], 5, 64, seed=0)]
    assert len(phrases) == len(set(phrases)) == 5


def test_phrase_vectors_are_those_of_the_end_token(backbone, encoded):
    text = backbone.embed(["red apple"])
    assert torch.allclose(encoded.vectors[1], text.context[0, 3], atol=1e-5)  # start, red, apple, end


# ---- maps ----


def test_maps_are_what_the_unet_computes_under_each_phrase(backbone, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "ROWS", 2)  # three examples in two passes
    fine, coarse = sweep.feature_maps(backbone, encoded, SETTINGS, 300, 7, tmp_path)
    assert fine.shape[2:] == (8, 8) and coarse.shape[2:] == (1, 1) and not list(tmp_path.iterdir())
    z = encoded.z
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    timesteps = torch.full((3,), 300)
    z_t = backbone.schedule.add_noise(z, noise, timesteps)
    context = backbone.embed(["cat", "red apple", "apple"]).context
    with half_precision("cpu"):
        _, maps = backbone.model.unet(z_t, timesteps, context, taps=BLOCKS)
    for found, expected in zip((fine, coarse), maps, strict=True):
        assert torch.allclose(found.float(), expected.float(), atol=0.02)
    empty = replace(SETTINGS, condition="empty")
    assert not torch.allclose(sweep.feature_maps(backbone, encoded, empty, 300, 7, tmp_path)[0], fine, atol=0.02)


def test_maps_that_are_not_finite_are_refused(backbone, encoded, tmp_path):
    broken = replace(encoded, z=torch.full_like(encoded.z, float("nan")))
    with pytest.raises(InputError, match="not finite"):
        sweep.feature_maps(backbone, broken, SETTINGS, 300, 0, tmp_path)


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="GiB free: sweep fewer examples"):
        sweep.mapped((1 << 30, 1 << 20), tmp_path)


# ---- the run ----


def test_every_block_and_the_latent_have_scores_of_all_seeds_at_every_timestep(whole):
    folder, numbers = whole
    rows = {(row["block"], row["timestep"]): row for row in numbers["rows"]}
    assert sorted(rows) == sorted((b, t) for b in (*BLOCKS, sweep.LATENT) for t in (300, 1000))
    assert rows["middle_block", 300]["grid"] == [1, 1] and rows["middle_block", 300]["number"] == 7
    assert rows["latent", 1000]["number"] == 0 and rows["latent", 300]["channels"] == 4
    cells = [json.loads((folder / "cells" / f"seed{s}-t300.json").read_text()) for s in (0, 1)]
    aps = [cell["middle_block"]["ap"] for cell in cells]
    assert rows["middle_block", 300]["ap"]["mean"] == pytest.approx(sum(aps) / 2, abs=1e-5)
    assert len({cell["input_blocks.1"]["miou"] for cell in cells}) == 2


def test_a_stopped_run_ends_as_one_that_was_not(backbone, tmp_path, whole):
    cells = sweep.sweep(backbone, PARTS, SETTINGS, tmp_path)
    for _ in range(3):
        next(cells)
    cells.close()
    (tmp_path / "cells" / "seed1-t300.json").write_text('{"cut')
    assert run(backbone, tmp_path) == whole[1]


def test_cells_that_are_there_are_not_computed_again(backbone, whole, monkeypatch):
    monkeypatch.setattr(sweep, "subset", None)
    assert run(backbone, whole[0]) == whole[1]


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    sweep.prepare(tmp_path, SETTINGS, resume=False)
    with pytest.raises(InputError, match="go on with --resume"):
        sweep.prepare(tmp_path, SETTINGS, resume=False)
    sweep.prepare(tmp_path, replace(SETTINGS, seeds=3, timesteps=(500,)), resume=True)  # more cells of the same kind
    with pytest.raises(InputError, match=r"other settings \(steps 2\): choose another --out"):
        sweep.prepare(tmp_path, replace(SETTINGS, steps=3), resume=True)


# ---- the figure ----


def test_the_figure_is_valid_as_png_and_svg(whole):
    with Image.open(whole[0] / "sweep.png") as image:
        image.load()
    root = ElementTree.parse(whole[0] / "sweep.svg").getroot()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"input_blocks.1", "middle_block", "clean latent", "8 x 8", "t=300", "1000"} <= set(words)


def test_the_best_cell_is_the_brightest():
    about = {"number": 1, "grid": [8, 8], "channels": 4, "parameters": 9}
    rows = [
        {"block": block, **about, "timestep": t, "ap": {"mean": ap, "std": 0}}
        for block, t, ap in (("a", 300, 0.25), ("a", 400, 0.5), ("b", 300, 0.0), ("b", 400, 0.125))
    ]
    svg = draw({"rows": rows, "swept": {"seeds": 1}}, ("b",)).svg()
    fills = [svg.partition(f">{ap}<")[0].rpartition('<rect x="')[2] for ap in ("50.0", "0.0")]
    assert [heat(share) in fill for share, fill in zip((1, 0), fills, strict=True)] == [True, True]
