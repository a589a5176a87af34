"""Training in several processes, and after a process was killed: the losses are those of one run without a stop."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet_core import cli

ROOT = Path(__file__).parents[2]
SETTINGS = ["--data", "folder:data", "--kind", "ldznet", "--batch", "4", "--at-once", "1", "--steps", "3"]
SETTINGS += ["--validate", "0", "--absent", "0.3", "--precision", "float32"]  # bfloat16 would hide the order of sums
# As `ldznet`, but with a checkpoint after every step, and killed before the second one is written.
KILLED = """
import os, signal, sys
from ldznet_core import cli
from ldznet_core.training import loop

write, loop.SAVE_EVERY = loop.write_shards, -1

def once(folder, tensors, about):
    if about["steps"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, tensors, about)

loop.write_shards, loop.SAVING_SHARE = once, float("inf")
cli.main(sys.argv[1:])
"""


@pytest.fixture
def trained(made, tmp_path, monkeypatch):
    """A folder of pictures and masks as the current folder, and the losses of a run in one process on it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(4):
        for folder in ("images", f"masks/p{number}"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (64, 80, 3)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"p{number}.png")
        for phrase in ("cat", "apple"):
            Image.fromarray(rng.random((64, 80)) > 0.5).save(tmp_path / "data" / f"masks/p{number}/{phrase}.png")
    assert cli.main(["train", "--model", str(made / "mini.safetensors"), "--out", "one.safetensors", *SETTINGS]) == 0
    return losses("one")


def losses(folder: str) -> dict[int, float]:
    lines = map(json.loads, Path(folder, "losses.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


def environment(threads: int = 1) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}


def test_two_processes_have_the_losses_of_one(made, trained):
    pytest.importorskip("accelerate")
    # `--cpu` would start one process only; without a GPU this starts two on the CPU.
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    launch += " --mixed_precision no --dynamo_backend no -m ldznet_core train"
    command = [sys.executable, *launch.split(), "--model", made / "mini.safetensors", "--out", "two.safetensors"]
    ended = subprocess.run([*command, *SETTINGS], env=environment(), capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1  # of the main process
    assert losses("two") == pytest.approx(trained, abs=1e-4)
    assert losses("two") != trained or os.cpu_count() == 1  # sums in another order: there were two


def test_processes_that_accelerate_does_not_see_are_told(made, tmp_path, monkeypatch, capsys):
    """Else each would train alone and write over the others' files. MPI names them by variables of its own."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(accelerate, "PartialState", lambda cpu: SimpleNamespace(num_processes=1))
    assert cli.main(["train", "--model", str(made / "mini.safetensors"), "--out", "d.safetensors", *SETTINGS]) == 2
    assert "2 processes were started, of which accelerate sees 1: start them" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_losses(made, trained):
    run = ["train", "--model", str(made / "mini.safetensors"), "--out", "killed.safetensors", *SETTINGS]
    environ = environment(torch.get_num_threads())  # more threads sum in another order
    killed = subprocess.run([sys.executable, "-c", KILLED, *run], env=environ, capture_output=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL
    assert json.loads(Path("killed/about.json").read_text())["steps"] == 1 and len(losses("killed")) == 2
    assert not Path("killed.safetensors").exists()
    assert cli.main([*run, "--resume"]) == 0
    assert losses("killed") == pytest.approx(trained, abs=1e-6)
