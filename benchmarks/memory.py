"""Resident memory over many runs of LDZNetSegment in one process: `python benchmarks/memory.py [runs]`."""

import os
import sys
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import engine

from ldznet_core.imaging.images import read_image, to_tensor

PICTURE = engine.ROOT / "docs" / "pictures" / "park.png"


def main(runs: int) -> None:
    assert engine.start(), "no ComfyUI engine: set COMFYUI_PATH, or install it as the README says for the tests"
    nodes, process = engine.node_classes(engine.load_pack()), psutil.Process(os.getpid())
    with torch.inference_mode():
        model, clip, vae, decoder = nodes["LDZNetLoadMini"].execute().args
        image = to_tensor(read_image(PICTURE))
        for run in range(1, runs + 1):
            nodes["LDZNetSegment"].execute(model, clip, decoder, "panda | pumpkin", image=image, vae=vae)
            if run == 1 or run % 10 == 0:
                print(f"run {run:4d}: {process.memory_info().rss / 2**20:.1f} MiB resident")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
