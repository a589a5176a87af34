"""`ldznet segment` stopped and resumed, and shared among processes: every picture is done once, whatever happens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from terminal import call, done, files, picture, refused, results

import ldznet_core.commands.segment
from ldznet_core.commands.workers import Worker, this_worker, worst_status
from ldznet_core.segment.base import MaskPrediction

CAT = ("--text", "cat")
ROOT = Path(__file__).parents[2]
NAMES = [f"{name}.png" for name in "abcdef"]

# A program with made-up masks: the red of the picture. It is killed as it renames its KILL-th file; worker 1 is slow.
PROGRAM = """
import os, signal, sys, time
import ldznet_core.commands.segment as segment
from ldznet_core.cli import main
from ldznet_core.segment.base import MaskPrediction
segment.open_reader = lambda args, phrases: lambda image: MaskPrediction(
    image.permute(0, 3, 1, 2)[:, :1].expand(-1, len(phrases), -1, -1))
left, replace = int(os.environ.get("KILL", 0)), os.replace
def count(*paths):
    global left
    time.sleep(0.5 * int(os.environ.get("RANK", 0)))
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = count
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Six pictures in a folder `album`, and a finder whose masks are the red of the picture."""

    def open_reader(args, phrases):
        return lambda image: MaskPrediction(image.permute(0, 3, 1, 2)[:, :1].expand(-1, len(phrases), -1, -1))

    monkeypatch.setattr(ldznet_core.commands.segment, "open_reader", open_reader)
    monkeypatch.chdir(tmp_path)
    Path("album").mkdir()
    for number, name in enumerate(NAMES):
        picture(Path("album", name), (9, 6 + number))
    return tmp_path


def contents(folder) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in results(Path(folder))}


def images(lines) -> list[str]:
    return [Path(line["image"]).name for line in lines]


def run_program(*argv, launcher=(), **environment):
    script = Path("program.py")
    script.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *launcher, script, *argv], env=environment, capture_output=True, timeout=300)


# ---- resuming ----


def test_resume_does_what_is_missing_and_what_has_changed(album, capsys, monkeypatch):
    segment = ("segment", "album", *CAT, "--resume")
    assert images(done(capsys, *segment)) == NAMES
    Path("masks/b.cat.png").unlink()
    Path("masks/a.cat.png").write_text("mine")
    picture(Path("album/e.png"), (5, 5))
    picture(Path("album/new.png"))
    assert images(done(capsys, *segment)) == ["b.png", "e.png", "new.png"]
    assert Path("masks/a.cat.png").read_text() == "mine"
    monkeypatch.setattr(ldznet_core.commands.segment, "open_reader", None)  # no model is loaded for nothing
    assert done(capsys, *segment) == []


def test_another_picture_of_the_same_name_is_done(album, capsys):
    Path("other").mkdir()
    picture(Path("other/a.png"), (9, 6))
    done(capsys, "segment", "album", *CAT)
    assert len(done(capsys, "segment", "other/a.png", *CAT, "--resume")) == 1
    assert images(done(capsys, "segment", "album", *CAT, "--resume")) == ["a.png"]


def test_resume_with_other_options_is_refused(album, capsys):
    done(capsys, "segment", "album", *CAT)
    resume = ("segment", "album", "--resume", "--text")
    assert '--seed was 0 and is 1' in refused(capsys, album, *resume, "cat", "--seed", 1)
    assert '--text was ["cat"] and is ["cat", "dog"]' in refused(capsys, album, *resume, "cat|dog")
    assert done(capsys, *resume, "cat", "--device", "cpu") == []


def test_without_resume_all_is_done_anew_and_can_be_resumed(album, capsys):
    done(capsys, "segment", "album", *CAT)
    done(capsys, "segment", "album/a.png", *CAT, "--seed", 1)
    assert images(done(capsys, "segment", "album", *CAT, "--seed", 1, "--resume")) == NAMES[1:]


def test_a_torn_line_is_a_picture_not_done(album, capsys):
    done(capsys, "segment", "album", *CAT)
    record = Path("masks/.manifest.0.jsonl")
    record.write_bytes(record.read_bytes()[:-20])
    assert images(done(capsys, "segment", "album", *CAT, "--resume")) == ["f.png"]
    assert done(capsys, "segment", "album", *CAT, "--resume") == []


@pytest.mark.skipif(os.name == "nt", reason="Windows kills otherwise")
def test_killed_at_any_file_and_resumed_as_if_never_stopped(album, capsys):
    done(capsys, "segment", "album", *CAT, "--out", "whole")
    killed = run_program("segment", "album", *CAT, KILL="6")  # between the two files of the third picture
    assert killed.returncode == -signal.SIGKILL
    printed = [json.loads(line)["image"] for line in killed.stdout.splitlines()]
    assert len(files(album / "masks")) > len(results(album / "masks"))
    resumed = done(capsys, "segment", "album", *CAT, "--resume")
    assert images([{"image": one} for one in printed]) + images(resumed) == NAMES
    assert contents("masks") == contents("whole")
    assert not [name for name in files(album / "masks") if name.endswith(".tmp")]


# ---- sharing ----


@pytest.fixture
def as_worker(monkeypatch):
    def become(rank, count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return become


def test_workers_write_what_one_process_writes(here, capsys, as_worker):
    """With a real, tiny model; pictures of one name from two folders are numbered the same."""
    for number in range(2):
        for folder in ("one", "two"):
            Path(folder).mkdir(exist_ok=True)
            picture(Path(folder, f"{number}.png"), (24 + number, 16))
    segment = ("segment", "two", "one", *CAT, "--method", "attention")
    alone = images(done(capsys, *segment, "--out", "alone"))
    shares = []
    for rank in (1, 0):
        as_worker(rank, 2)
        shares.append(images(done(capsys, *segment, "--out", "shared")))
    assert sorted(shares[0] + shares[1]) == sorted(alone) and [len(share) for share in shares] == [2, 2]
    assert contents("shared") == contents("alone")
    as_worker(0, 1)  # what two began one may end
    assert done(capsys, *segment, "--out", "shared", "--resume") == []


def test_more_workers_than_pictures(album, capsys, as_worker, monkeypatch):
    as_worker(3, 4)
    monkeypatch.setattr(ldznet_core.commands.segment, "open_reader", None)
    assert done(capsys, "segment", "album/a.png", *CAT) == []


def test_names_that_stand_for_nothing_are_told_once(album, capsys, as_worker):
    for rank, told in ((0, 1), (1, 0)):
        as_worker(rank, 2)
        status, lines, errors = call(capsys, "segment", "*.tif", "album", *CAT)
        assert (status, len(lines), len(errors)) == (2, 3, told)


def test_workers_cannot_share_standard_input(album, capsys, as_worker):
    as_worker(0, 2)
    assert "give a file" in refused(capsys, album, "segment", "--list", "-", *CAT)


def test_workers_that_make_no_sense(album, capsys, as_worker):
    for rank, count, said in ((2, 2, "RANK 2"), ("x", 2, "'x'"), (0, 0, "WORLD_SIZE 0")):
        as_worker(rank, count)
        assert said in refused(capsys, album, "segment", "album", *CAT)


def test_the_place_among_workers(monkeypatch, as_worker):
    assert this_worker() == Worker(0, 1, 0)
    as_worker(5, 8)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert this_worker() == Worker(5, 8, 1)
    assert worst_status(this_worker(), 2) == 2  # no launcher, no waiting


@pytest.mark.parametrize("gpus", [1, 2])
def test_workers_of_one_machine_take_its_gpus_in_turn(monkeypatch, as_worker, gpus):
    from ldznet_core.commands.shared import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: torch.ones(1))
    as_worker(1, 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [choose_device(name) for name in (None, "cuda", "cuda:0")] == [f"cuda:{gpus - 1}"] * 2 + ["cuda:0"]


@pytest.mark.skipif(os.name == "nt", reason="needs torchrun as Linux has it")
def test_a_bad_picture_of_one_worker_does_not_end_the_other(album):
    """Launchers kill all workers as soon as one fails, so they must end together."""
    Path("album/a.png").write_text("no picture")
    run = run_program("segment", "album", *CAT, launcher=("-m", "torch.distributed.run", "--nproc-per-node", "2"))
    assert run.returncode and b"album/a.png" in run.stderr
    assert results(Path("masks")) == {f"{name}.{end}.png" for name in "bcdef" for end in ("cat", "overlay")}
