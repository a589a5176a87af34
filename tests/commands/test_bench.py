"""`ldznet bench`: ratios of one run."""

import contextlib
import io
import json

import pytest
from terminal import fail

from ldznet_core.backbones import sampling
from ldznet_core.cli import main
from ldznet_core.errors import InputError
from ldznet_core.evaluation import bench
from ldznet_core.evaluation.bench import NAIVE, SAMPLING, Way, rows, table

SMALL = ("--side", "64", "--rounds", "1", "--batch", "1", "--phrases", "1", "2")


@pytest.fixture(scope="module")
def result(made):
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "STEPS", 3)
        assert main(["bench", "--model", str(made / "mini.safetensors"), *SMALL, "--json"]) == 0
    return json.loads(out.getvalue())


def test_every_method_is_timed_from_image_latent_and_while_sampling(result):
    names = [row["way"] for row in result["rows"]]
    assert names[0] == NAIVE and SAMPLING in names and len(set(names)) == len(names)
    for method in ("light", "ldznet", "znet", "attention", "noise"):
        for source in ("image", "latent"):
            assert f"{method}, {source}, 2 phrases, 1 picture" in names
    assert "light, while sampling, 1 phrase" in names and "znet, while sampling, 1 phrase" not in names


def test_operations_are_counted_beside_seconds(result):
    by_name = {row["way"]: row for row in result["rows"]}
    assert all(row["gflop"] > 0 and row["seconds"] > 0 for row in result["rows"])
    image, latent = (by_name[f"light, {source}, 1 phrase, 1 picture"] for source in ("image", "latent"))
    assert latent["gflop"] < image["gflop"] < by_name["light, image, 2 phrases, 1 picture"]["gflop"]
    assert latent["ratio of operations"] == pytest.approx(latent["gflop"] / by_name[NAIVE]["gflop"], rel=0.01)
    assert result["machine"]["side"] == 64 and result["machine"]["roof, gflop a second"] > 0


def test_pictures_are_worked_on_at_their_own_size(result):
    """An image costs one pass of the autoencoder more than its latent, whatever the method."""
    by_name = {row["way"]: row["gflop"] for row in result["rows"]}
    more = [
        by_name[f"{method}, image, 1 phrase, 1 picture"] - by_name[f"{method}, latent, 1 phrase, 1 picture"]
        for method in ("light", "ldznet", "znet", "attention")
    ]
    assert more == pytest.approx([more[0]] * 4, rel=0.01)


def test_ratios_are_those_within_a_round():
    base = Way("base", lambda: None, gflop=10, seconds=[1.0, 2.0, 4.0])
    way = Way("way", lambda: None, "base", 2, gflop=5, seconds=[1.0, 2.0, 2.0])
    row = list(rows([base, way], roofline=100))[1]
    assert (row["ratio"], row["low"], row["high"]) == (0.5, 0.25, 0.5)
    assert row["over"] == "2 times base" and row["ratio of operations"] == 0.25
    assert row["share of roof"] == 0.025  # 5 GFLOP in 2 s of 100 GFLOP/s


def test_the_table_has_a_line_a_way():
    lines = list(table([{"way": "a", "seconds": 1.0}, {"way": "b", "seconds": 2.0, "over": "a", "ratio": 2.0}]))
    assert lines[:2] == ["| way | seconds | over | ratio |", "|---|---|---|---|"]
    assert lines[2:] == ["| a | 1.0 | - | - |", "| b | 2.0 | a | 2.0 |"]


def test_sizes_alone_are_measured(monkeypatch, capsys):
    monkeypatch.setattr(bench, "random_model", fail(InputError("a random model was asked for")))
    assert main(["bench", "--sizes", "sd1"]) == 2
    assert "a random model was asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--side", "100"), "--side 100 is no multiple of 64"),
        (("--sizes", "sd1", "--model", "mini"), "--model has no use with --sizes"),
        (("--decoders", "nowhere.safetensors"), "no decoder file nowhere.safetensors"),
    ],
)
def test_wrong_options_are_one_line(capsys, options, words):
    assert main(["bench", *options]) == 2
    assert words in capsys.readouterr().err
