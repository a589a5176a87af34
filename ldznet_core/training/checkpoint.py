"""Checkpoints of a run in training: small safetensors files and a JSON file that makes them valid together."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError, first_line
from ..imaging.files import replacing

SHARD_BYTES = 15 * 2**20
OPTIMIZER = "o"  # first part of the names of optimisers' tensors


def write_shards(folder: Path, tensors: Mapping[str, Tensor], about: dict) -> None:
    """Write tensors as `shard-*.safetensors` of at most 15 MiB each (one tensor may be larger), then `about.json`.

    Shards have new names every time and the old ones go last, so a process that is killed here leaves the checkpoint
    of before whole.
    """
    shards: list[dict[str, Tensor]] = [{}]
    free = SHARD_BYTES
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if shards[-1] and tensor.nbytes > free:
            shards.append({})
            free = SHARD_BYTES
        shards[-1][name] = tensor
        free -= tensor.nbytes
    stamp = time.time_ns()
    files = [f"shard-{stamp}-{i}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        with replacing(folder / file) as unfinished:
            save_file(shard, unfinished)
    with replacing(folder / "about.json") as unfinished:
        unfinished.write_text(json.dumps({**about, "files": files}, indent=1))
    for old in (*folder.glob("shard-*.safetensors"), *folder.glob("piece-*.safetensors")):
        if old.name not in files:
            old.unlink()


def read_shards(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """What `write_shards` wrote. Raises InputError where there is nothing or a shard is missing or damaged."""
    try:
        about = json.loads((folder / "about.json").read_text())
        # Before version 0.2 a checkpoint named the number of its files only.
        files = about["files"] if "files" in about else [f"piece-{i}.safetensors" for i in range(about["pieces"])]
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors.update(load_file(folder / file))
    except Exception as error:
        raise InputError(
            f"{folder} holds no whole checkpoint ({first_line(error)}): run the step before it first"
        ) from None
    return tensors, about


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as named tensors: "o.<optimiser>.<parameter>.<key>"."""
    return {
        f"{OPTIMIZER}.{number}.{parameter}.{key}": value
        for number, optimizer in enumerate(optimizers)
        for parameter, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> bool:
    """Give optimisers the state that `optimizer_tensors` named; False where the checkpoint holds none."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in tensors.items():
        if name.startswith(f"{OPTIMIZER}."):
            _, number, parameter, key = name.split(".")
            states[int(number)].setdefault(int(parameter), {})[key] = value
    if not any(states):
        return False
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return True
