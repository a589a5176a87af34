"""`ldznet segment` on many pictures, odd names and failing disks: no picture ends the others. The masks are made up."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest
import torch
from terminal import call, done, picture, refused, results

import ldznet_core.commands.segment
import ldznet_core.imaging.images
from ldznet_core.segment.base import MaskPrediction

CAT = ("--text", "cat")
FAULTS = {  # by the height of a picture
    1: ZeroDivisionError("by zero"),
    2: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    3: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    4: MemoryError(),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, and a finder that says 0.75 everywhere and fails as `FAULTS` says."""

    def open_reader(args, phrases):
        def find(image):
            height, width = image.shape[1:3]
            if height in FAULTS:
                raise FAULTS[height]
            masks = torch.full((1, len(phrases), height, width), torch.nan if height == 5 else 0.75)
            return MaskPrediction(masks, None, 0.0)

        return find

    monkeypatch.setattr(ldznet_core.commands.segment, "open_reader", open_reader)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- which pictures ----


def test_folders_patterns_and_lists(folder, capsys):
    for name in ("album/a.png", "album/b.jpg", "c.png", "d.png", "e e.png"):
        Path(name).parent.mkdir(exist_ok=True)
        picture(Path(name))
    Path("album/notes.txt").write_text("not a picture")
    Path("list.txt").write_text("c.png\n\ne e.png\nalbum\n")
    lines = done(capsys, "segment", "album", "[cd].png", "--list", "list.txt", *CAT)
    assert [line["image"] for line in lines] == ["album/a.png", "album/b.jpg", "c.png", "d.png", "c.png", "e e.png"]
    assert lines[4]["overlay"] == "masks/c-2.overlay.png"  # a list names its files one by one


def test_a_list_may_come_from_a_pipe(folder, capsys, monkeypatch):
    picture(folder / "a.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\n")))
    assert [line["image"] for line in done(capsys, "segment", "--list", "-", *CAT)] == ["a.png"]


def test_options_may_stand_before_the_pictures(folder, capsys):
    picture(folder / "a.png")
    assert len(done(capsys, "segment", *CAT, "a.png")) == 1


def test_names_that_stand_for_no_picture(folder, capsys):
    Path("empty").mkdir()
    Path("list.txt").write_text("\n\n")
    for words, said in (
        (["empty"], "no picture in this folder"),
        (["*.png"], "no file matches"),
        ([""], "empty"),
        ([], "no picture is named"),
        (["--list", "list.txt"], "no picture is named"),
        (["--list", "gone.txt"], "gone.txt"),
    ):
        assert said in refused(capsys, folder, "segment", *words, *CAT)
    picture(folder / "a.png")
    status, lines, errors = call(capsys, "segment", "empty", "*.tif", "a.png", *CAT)
    assert status == 2 and [line["image"] for line in lines] == ["a.png"] and len(errors) == 2


# ---- names ----


def test_names_as_long_as_the_disk_allows(folder, capsys):
    names = ["p" * 245 + end + ".png" for end in ("", "1", "2")] + ["猫" * 83 + ".png", "é" * 125 + "x.png"]
    for name in names:
        picture(folder / name)
    lines = done(capsys, "segment", *names, "--text", "red apple", "--labels")
    written = results(folder / "masks")
    assert len(lines) == 5 and len(written) == 15  # no two of one name
    for line in lines:
        for file in (line["overlay"], line["labels"], line["phrases"][0]["mask"]):
            assert Path(file).name in written


def test_phrases_of_one_long_beginning(folder, capsys):
    picture(folder / "a.png")
    long = "𠀀" * 60
    (line,) = done(capsys, "segment", "a.png", "--text", long + "猫", "--text", long + "狗")
    assert len({Path(one["mask"]).name for one in line["phrases"]} & results(folder / "masks")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text(folder, capsys):
    name = os.fsdecode(b"caf\xe9.png")
    picture(folder / name)
    (line,) = done(capsys, "segment", name, *CAT)
    assert Path(line["overlay"]).exists()


def test_places_that_cannot_be_written_are_refused_before_the_work(folder, capsys, monkeypatch):
    picture(folder / "a.png")
    monkeypatch.setattr(ldznet_core.commands.segment, "open_reader", None)
    assert "too long" in refused(capsys, folder, "segment", "a.png", *CAT, "--out", "o" * 300)
    assert "too long" in refused(capsys, folder, "segment", "a.png", *CAT, "--out", "o/" * 3000)
    Path("link").symlink_to("nowhere")
    assert "leads nowhere" in refused(capsys, folder, "segment", "a.png", *CAT, "--out", "link/masks")
    Path("masks/a.overlay.png").mkdir(parents=True)
    assert "folder of that name" in refused(capsys, folder, "segment", "a.png", *CAT)


def test_an_empty_out_is_not_the_current_folder(folder, capsys):
    picture(folder / "a.png")
    assert "empty" in refused(capsys, folder, "segment", "a.png", *CAT, "--out", "")


# ---- failures while working ----


def test_links_that_lead_nowhere_do_not_end_the_others(folder, capsys):
    picture(folder / "a.png")
    Path("loop.png").symlink_to("loop.png")
    Path("gone.png").symlink_to("nowhere.png")
    status, lines, errors = call(capsys, "segment", "loop.png", "gone.png", "a.png", *CAT)
    assert status == 2 and [line["image"] for line in lines] == ["a.png"]
    assert "loop.png" in errors[0] and "gone.png" in errors[1] and len(errors) == 2


@pytest.mark.parametrize(
    ("height", "status", "said"),
    [(1, 1, "please report"), (2, 2, "memory"), (3, 2, "memory"), (4, 2, "memory"), (5, 2, "not finite")],
)
def test_a_failing_picture_does_not_end_the_others(folder, capsys, height, status, said):
    picture(folder / "a.png")
    picture(folder / "bad.png", (7, height))
    picture(folder / "c.png")
    ended, lines, (error,) = call(capsys, "segment", "a.png", "bad.png", "c.png", *CAT)
    assert ended == status and [line["image"] for line in lines] == ["a.png", "c.png"]
    assert "bad.png" in error and said in error
    assert results(folder / "masks") == {f"{name}.{end}.png" for name in "ac" for end in ("cat", "overlay")}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_picture_whose_files_cannot_be_written_leaves_none_of_them(folder, capsys, monkeypatch, code):
    for name in ("a", "b", "c"):
        picture(folder / f"{name}.png")
    replacing = ldznet_core.imaging.images.replacing

    def full(path):
        if path.name == "b.overlay.png":
            raise OSError(code, os.strerror(code))
        return replacing(path)

    monkeypatch.setattr(ldznet_core.imaging.images, "replacing", full)
    status, lines, (error,) = call(capsys, "segment", "a.png", "b.png", "c.png", *CAT)
    assert status == 2 and [line["image"] for line in lines] == ["a.png", "c.png"]
    assert "b.png" in error and (code != errno.ENOSPC or "the disk is full" in error)
    assert results(folder / "masks") == {f"{name}.{end}.png" for name in "ac" for end in ("cat", "overlay")}


def test_results_that_cannot_be_printed(folder, capsys, monkeypatch):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    picture(folder / "a.png")
    monkeypatch.setattr(sys, "stdout", Full())
    status, _, (error,) = call(capsys, "segment", "a.png", *CAT)
    assert status == 2 and "the disk is full" in error and "report" not in error
