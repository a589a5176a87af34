"""Which pictures names, folders, patterns and lists stand for: no model is needed."""

import os
from pathlib import Path

import pytest

from ldznet_core.commands.inputs import find_pictures, read_list
from ldznet_core.errors import InputError


@pytest.fixture
def album(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "A.JPG", "c.webp", "notes.txt", "._b.png", "more/d.png", "odd[1].png", "odd1.png"):
        Path("album", name).parent.mkdir(parents=True, exist_ok=True)
        Path("album", name).touch()
    return tmp_path


def found(*names):
    pictures, problems = find_pictures(names, Path("masks"))
    return [picture.as_posix() for picture in pictures], problems


def test_a_folder_stands_for_the_pictures_in_it(album):
    names = ["A.JPG", "b.png", "c.webp", "odd1.png", "odd[1].png"]
    assert found("album") == ([f"album/{name}" for name in names], [])


def test_a_pattern_is_expanded(album):
    assert found("album/*b.png") == (["album/b.png"], [])
    assert found("album/**/*.png")[0] == ["album/b.png", "album/more/d.png", "album/odd1.png", "album/odd[1].png"]


def test_a_file_that_looks_like_a_pattern_is_itself(album):
    assert found("album/odd[1].png") == (["album/odd[1].png"], [])


def test_what_is_found_twice_is_taken_once_but_what_is_named_twice_is_named(album):
    assert found("album/b.png", "album/b*", "./album/b.*") == (["album/b.png"], [])
    assert found("album/b.png", "album/b.png")[0] == ["album/b.png"] * 2


def test_names_that_stand_for_nothing_do_not_stop_the_others(album):
    Path("empty").mkdir()
    pictures, problems = found("empty", "no*.png", "album/b.png", "gone.png")
    assert pictures == ["album/b.png", "gone.png"]  # reading it will tell that it is gone
    assert ["empty" in problems[0], "no*.png" in problems[1], len(problems)] == [True, True, 2]


def test_a_folder_is_not_its_own_out(album):
    pictures, (problem,) = find_pictures(["album"], Path("album/../album"))
    assert pictures == [] and "--out" in problem


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="only those whom permissions bind")
def test_a_closed_folder_is_named(album):
    Path("album").chmod(0)
    try:
        assert "cannot be read" in found("album")[1][0]
    finally:
        Path("album").chmod(0o755)


@pytest.mark.parametrize(
    "content",
    [
        b"b.png\nmore/\xc3\xa9 d.png\n",
        b"\r\n b.png\r\n\r\nmore/\xc3\xa9 d.png".replace(b" b", b"b"),
        b"\xef\xbb\xbfb.png\nmore/\xc3\xa9 d.png",
        "b.png\r\nmore/é d.png\r\n".encode("utf-16"),
    ],
    ids=["plain", "Windows, empty lines, no last newline", "UTF-8 with a mark", "UTF-16, as PowerShell writes"],
)
def test_lists_of_any_editor(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert read_list(str(tmp_path / "list.txt")) == ["b.png", "more/é d.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_list_may_name_files_whose_names_are_no_text(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert [os.fsencode(name) for name in read_list(str(tmp_path / "list.txt"))] == [b"caf\xe9.png"]


def test_what_is_no_list(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    for name in ("a.png", "gone.txt", "."):
        with pytest.raises(InputError, match="--list"):
            read_list(str(tmp_path / name))
