"""What is not a fault of the program is not reported as one: files, disks and memory, for every command."""

import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from terminal import call, fail, refused

import ldznet_core.commands.convert
import ldznet_core.commands.generate
from ldznet_core.cli import main
from ldznet_core.errors import InputError

LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("info", LONG),
        ("info", ""),
        ("convert", LONG, "o.safetensors"),
        ("convert", "a.png", LONG + ".safetensors"),
        ("convert", "a.png", "folder.safetensors", "--overwrite"),
        ("segment", LONG + ".png", "--text", "cat"),
        ("segment", "a.png", "--text", "cat", "--decoder", LONG),
        ("segment", "a.png", "--text", "cat", "--model", LONG, "--method", "attention"),
        ("segment", "a.png", "--text", "cat", "--model", ""),
        ("segment", "a.png", "--text", "cat", "--decoder", " "),
        ("generate", "a cat", "--text", "cat", "--model", LONG),
        ("mini", "build", "pack", "--folder", "a.png"),
    ],
)
def test_names_that_no_file_can_have(here, capsys, words):
    Path("folder.safetensors").mkdir()
    refused(capsys, here, *words)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/closed/model"), "/closed/model (Permission denied)"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "not enough memory"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_causes_outside_are_named(here, capsys, monkeypatch, error, said):
    monkeypatch.setattr(ldznet_core.commands.generate, "open_model", fail(error))
    message = refused(capsys, here, "generate", "a cat", "--text", "cat")
    assert said in message and "fault" not in message


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes of this kind")
def test_a_pipe_is_no_picture(here, capsys):
    os.mkfifo("pipe.png")
    assert "pipe" in refused(capsys, here, "segment", "pipe.png", "--text", "cat")


def test_a_full_disk_leaves_no_part_of_a_converted_decoder(here, made, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ldznet_core.commands.convert, "write_decoder", full)
    assert "the disk is full" in refused(capsys, here, "convert", made / "znet.safetensors", "out.safetensors")


def test_letters_that_stdout_does_not_have(here, made, monkeypatch):
    shutil.copy(made / "znet.safetensors", "é.safetensors")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    assert main(["info", "é.safetensors"]) == 0
    assert b"\\xe9" in out.getvalue()


def test_bad_input_that_says_no_more_than_its_kind(here, capsys, monkeypatch):
    monkeypatch.setattr(ldznet_core.commands.generate, "open_model", fail(InputError("two\nlines")))
    assert call(capsys, "generate", "a cat", "--text", "cat")[2] == ["ldznet: two lines"]
