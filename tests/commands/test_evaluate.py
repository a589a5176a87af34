"""`ldznet evaluate` on a data set: a row a method, published rows where they belong, one sentence for what fails."""

import numpy as np
import pytest
import torch
from PIL import Image
from terminal import call, refused

from ldznet_core import cli
from ldznet_core.commands import evaluate as command
from ldznet_core.evaluation import rivals
from ldznet_core.segment.base import MaskPrediction


@pytest.fixture
def folder(here, made, monkeypatch):
    """Four pictures of two sizes that hold a cat; the first two are also asked for a bus, which is not there."""
    monkeypatch.setattr(command, "BUNDLED", made)
    for number in range(4):
        height, width = (80, 40) if number % 2 else (70, 90)
        mask = np.zeros((height, width), np.uint8)
        mask[10:50, 5:30] = 255
        image = np.random.default_rng(number).integers(0, 255, (height, width, 3)).astype(np.uint8)
        masks = here / "data" / "masks" / f"p{number}"
        masks.mkdir(parents=True)
        (here / "data" / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(here / "data" / "images" / f"p{number}.png")
        Image.fromarray(mask).save(masks / "cat.png")
        if number < 2:
            Image.fromarray(mask * 0).save(masks / "bus.png")
    return here / "data"


def evaluate(capsys, folder, *options) -> tuple[int, list, list[str]]:
    return call(capsys, "evaluate", "--data", f"aigi:{folder}", *options)


def test_every_method_has_a_row_and_published_ones_follow(capsys, folder):
    status, rows, errors = evaluate(capsys, folder)
    assert (status, errors) == (0, [])
    ours = [row for row in rows if row["seeds"]]
    assert [row["method"] for row in ours] == ["mark everything", "rgbnet", "znet", "ldznet", "attention", "noise"]
    assert all(row["set"] == "AIGI" and row["samples"] == 4 for row in ours)
    for score in ("miou", "iou_fg", "ap", "native_miou", "native_ciou", "pr50", "giou", "n_acc", "t_acc", "false_area"):
        assert all(0 <= row[score]["mean"] <= 1 for row in ours), score
    assert [row["method"] for row in rows if row.get("published")][-1] == "LD-ZNet (published)"
    everything = ours[0]
    assert everything["native_miou"]["mean"] == 1 and everything["giou"]["mean"] == pytest.approx(4 / 6)


def test_a_part_of_a_data_set_has_no_published_rows_unless_they_are_asked_for(capsys, folder):
    quick = ("--limit", "2", "--method", "attention", "--size", "native")
    status, rows, _ = evaluate(capsys, folder, *quick)
    assert status == 0 and [row["method"] for row in rows] == ["mark everything", "attention"]
    assert rows[0]["set"] == f"aigi:{folder}" and rows[0]["samples"] == 1
    _, rows, _ = evaluate(capsys, folder, *quick, "--table", "refcocog")
    assert rows[-1] == {
        "set": "RefCOCOg", "method": "LD-ZNet (published)", "text": "", "refined": False, "seeds": None,
        "samples": None, "published": True, "ap": {"mean": 0.308, "std": 0.0}, "iou": {"mean": 0.478, "std": 0.0},
    }
    _, rows, _ = call(capsys, "evaluate", "--data", f"aigi:{folder}?split=all", "--method", "attention")
    assert [row["method"] for row in rows] == ["mark everything", "attention"]


def test_a_damaged_picture_is_named_and_left_out(capsys, folder):
    (folder / "images" / "p3.png").write_bytes(b"no picture")
    status, rows, errors = evaluate(capsys, folder, "--method", "attention")
    assert status == 0 and rows[0]["samples"] == 3
    assert len(errors) == 2 and "p3.png" in errors[0] and "1 of 6 phrases" in errors[1]


def test_what_cannot_be_evaluated_is_said_in_one_sentence(capsys, here, folder):
    def problem(*options) -> str:
        return refused(capsys, here, "evaluate", *options)

    data = ("--data", f"folder:{folder}?split=all")
    assert "one of the arguments --data --pack is required" in problem()
    assert "neither a multiple of 64 nor 'native'" in problem(*data, "--size", "100")
    assert "no decoder of kind light among 3 files" in problem(*data, "--method", "light")
    assert "--sets has no use without --pack" in problem(*data, "--sets", "a")
    assert "--limit has no use without --data" in problem("--pack", "world.zip", "--limit", "3")
    assert "nowhere" in problem("--data", "folder:nowhere")


class Corner:
    """A rival that marks the left half of everything."""

    random = True

    def __init__(self, name: str, device: str, model: str):
        self.model = model

    def __call__(self, image, phrases) -> MaskPrediction:
        assert image.shape in {(80, 40, 3), (70, 90, 3)}  # pictures at their own size
        mask = torch.zeros(1, len(phrases), 2, 2)
        mask[..., 0] = 1
        return MaskPrediction(mask)


def test_rivals_stand_in_the_same_table_and_picture(capsys, folder, monkeypatch):
    monkeypatch.setitem(rivals.RIVALS, "clipseg", (Corner, ("a/model",)))
    picture = folder.parent / "new" / "bars.svg"
    options = ["--rival", "clipseg", "--markdown", "--picture", str(picture)]
    status = cli.main(["evaluate", "--data", f"aigi:{folder}", *options])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and len(lines) == 2 + 2 + 6  # head, everything and the rival, published rows
    assert lines[3].startswith("| AIGI | clipseg (random weights) | - |")
    assert "clipseg (random weights)" in picture.read_text(encoding="utf-8")


def test_a_picture_is_png_or_svg(capsys, here, folder):
    error = refused(capsys, here, "evaluate", "--data", f"aigi:{folder}", "--picture", "bars.pdf")
    assert "bars.pdf ends neither in .png nor in .svg" in error
