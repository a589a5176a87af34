"""The command line as tests use it: calls and what came of them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

import ldznet_core.backbones.load
import ldznet_core.commands.info
import ldznet_core.decoders.files
from ldznet_core import cli


def bundle(monkeypatch, folder):
    for module in (ldznet_core.decoders.files, ldznet_core.backbones.load, ldznet_core.commands.info):
        monkeypatch.setattr(module, "BUNDLED", folder)


def picture(path: Path, size=(40, 24), mode="RGB") -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def call(capsys, *argv) -> tuple[int, list[dict], list[str]]:
    """Exit status, parsed stdout lines, stderr lines."""
    status = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err.splitlines()


def done(capsys, *argv) -> list[dict]:
    status, lines, errors = call(capsys, *argv)
    assert status == 0 and not errors, errors
    return lines


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def results(folder: Path) -> set[str]:
    """The files in a folder of masks, the record of what is done apart."""
    return {name for name in files(folder) if not name.startswith(".manifest.")}


def refused(capsys, here, *argv) -> str:
    """The one line on stderr of a call that must end with 2 and leave nothing behind."""
    before = files(here)
    status, lines, errors = call(capsys, *argv)
    assert (status, lines, len(errors)) == (2, [], 1), errors
    assert errors[0].startswith("ldznet: ")
    assert files(here) == before
    return errors[0]


def fail(error):
    def run(*_):
        raise error

    return run
