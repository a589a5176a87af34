"""What `ldznet segment FOLDER` does with many pictures: peak memory, and a kill -9 in the middle.

    python benchmarks/folder.py memory 100 2000 [-- OPTIONS]
    python benchmarks/folder.py kill 500 [-- OPTIONS]

Pictures of noise, 64 x 48 pixels, are made in a temporary folder. OPTIONS go to `ldznet segment`, say --method znet.
Without OPTIONS masks are made up, a picture's red being its mask: what is measured is then the work around the network.
`kill` kills the run when a third of the pictures are done, resumes it, and compares all files with those of a run that
was never stopped. Prints one line of JSON.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)
MADE_UP = """
import sys
import ldznet_core.commands.segment as segment
from ldznet_core.cli import main
from ldznet_core.segment.base import MaskPrediction
segment.open_reader = lambda args, phrases: lambda image: MaskPrediction(image[..., 0][:, None])
raise SystemExit(main(sys.argv[1:]))
"""


def make_pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / f"{number:05d}.png")


def start(folder: Path, out: Path, options: list[str]) -> subprocess.Popen:
    program = ["-m", "ldznet_core"] if "--method" in options or "--model" in options else ["-c", MADE_UP]
    command = [sys.executable, *program, "segment", folder, "--text", "cat", "--out", out, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[list[str], int]:
    """The pictures that were printed, and the peak memory in MiB. Raises RuntimeError where the run failed."""
    pictures = [json.loads(line)["image"] for line in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"ldznet segment ended with {process.returncode}")
    return pictures, usage.ru_maxrss // 1024


def memory(counts: list[int], options: list[str], work: Path) -> dict:
    peaks = {}
    for count in counts:
        make_pictures(work / str(count), count)
        pictures, peaks[count] = finish(start(work / str(count), work / f"masks-{count}", options))
        assert len(pictures) == count
    return {"pictures": counts, "peak_mib": [*peaks.values()]}


def kill(count: int, options: list[str], work: Path) -> dict:
    make_pictures(work / "pictures", count)
    whole, _ = finish(start(work / "pictures", work / "whole", options))
    process = start(work / "pictures", work / "masks", options)
    first = [json.loads(process.stdout.readline())["image"] for _ in range(count // 3)]
    time.sleep(0.05)  # into the work on the next picture
    process.kill()
    rest, _ = finish(process)
    before = first + rest
    after, _ = finish(start(work / "pictures", work / "masks", [*options, "--resume"]))
    manifest = (work / "masks" / ".manifest.0.jsonl").read_text().splitlines()
    files = {file.name for file in (work / "masks").iterdir()} - {".manifest.0.jsonl"}
    differ = [
        name for name in files if (work / "masks" / name).read_bytes() != (work / "whole" / name).read_bytes()
    ]
    return {
        "pictures": count, "before_the_kill": len(before), "after": len(after),
        "lost": len({*whole} - {json.loads(line)["result"]["image"] for line in manifest}),
        "twice": len(manifest) - len({json.loads(line)["name"] for line in manifest}),
        "files": len(files), "files_that_differ": len(differ),
        "unfinished_files": sum(name.endswith(".tmp") for name in files),
    }  # fmt: skip


def main(words: list[str]) -> None:
    end = words.index("--") if "--" in words else len(words)
    options = words[end + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        if words[0] == "memory":
            result = memory([int(word) for word in words[1:end]], options, Path(folder))
        else:
            result = kill(int(words[1]), options, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
