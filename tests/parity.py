"""What every method gives at every door, on record: files may move, masks may not.

    python tests/parity.py --write   # into tests/data/parity.json
    python tests/parity.py --check   # on the same machine: names what is not the same to the bit, and ends with 1

Of each result of the runs in `doors.py` are kept its shape and sha256, for the same machine, and its means over 6 x 6
areas, which `test_parity.py` compares on any other; of pictures with words on them no means, for fonts differ.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import doors
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import engine

RECORD = Path(__file__).parent / "data" / "parity.json"
WORDED = ("overlay", "labels")  # pictures with words on them


def fingerprint(name: str, result: np.ndarray) -> dict:
    found = {"shape": [*result.shape], "sha256": hashlib.sha256(np.ascontiguousarray(result)).hexdigest()}
    if name.endswith(WORDED):
        return found
    means = torch.from_numpy(result / (255 if result.dtype == np.uint8 else 1)).double()
    if means.ndim > 1:
        means = F.adaptive_avg_pool2d(means.reshape(-1, 1, *means.shape[-2:]), 6)
    return found | {"means": [round(mean, 4) for mean in means.flatten().tolist()]}


def perform(name: str, run: Callable[[], doors.Results]) -> dict[str, dict]:
    """What there is to keep of a run, on one thread: on more of them sums come out otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {f"{name}: {result}": fingerprint(result, value) for result, value in run().items()}
    finally:
        torch.set_num_threads(threads)


def start_comfyui() -> doors.Comfy | None:
    """None where no engine is installed."""
    return doors.Comfy(engine.node_classes(engine.load_pack())) if engine.start() else None


def differences(before: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """The names of results that are not the same to the bit, or that only one of the two has."""
    exact = [{name: (found["shape"], found["sha256"]) for name, found in record.items()} for record in (before, now)]
    return [name for name in before | now if exact[0].get(name) != exact[1].get(name)]


def script() -> int:
    parser = argparse.ArgumentParser(description="What every method gives at every door, on record.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="record what the runs give now")
    what.add_argument("--check", action="store_true", help="name what is not the same to the bit as on record")
    write, comfy = parser.parse_args().write, start_comfyui()
    if comfy is None:
        print("no ComfyUI engine, so its nodes are left out: install it as the README says, or set COMFYUI_PATH")
        if write:
            return 1

    runs, now = doors.runs_without_engine() | (doors.runs_in_comfyui(comfy) if comfy else {}), {}
    for name, run in runs.items():
        now |= perform(name, run)
    if write:
        lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in now.items())
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{len(now)} results of {len(runs)} runs are on record")
        return 0
    left_out = () if comfy else tuple(f"{name}: " for name in doors.runs_in_comfyui(None))
    before = json.loads(RECORD.read_text())
    different = differences({name: found for name, found in before.items() if not name.startswith(left_out)}, now)
    print(*different, f"{len(different)} of {len(now)} results differ", sep="\n")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(script())
