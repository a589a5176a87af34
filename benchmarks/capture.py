"""What capturing costs a KSampler run of ComfyUI: `python benchmarks/capture.py [rounds]`.

Runs with and without capture are interleaved, because a machine's speed drifts; the ratio of each pair is taken
and the median of those is printed, with the bytes that are held for an image.
"""

import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import engine

STEPS = 20


def main(rounds: int) -> None:
    backbone = engine.start()
    assert backbone, "no ComfyUI engine: set COMFYUI_PATH, or install it as the README says for the tests"
    nodes = engine.node_classes(engine.load_pack())
    with torch.inference_mode():
        model, clip, vae, decoder = nodes["LDZNetLoadMini"].execute().args
        watched, capture = nodes["LDZNetCapture"].execute(model).args
        encode = backbone.nodes.CLIPTextEncode().encode
        prompts = [encode(clip, text)[0] for text in ("a pumpkin on a blue background", "")]
        blank = {"samples": torch.zeros(1, 4, 32, 32)}

        def seconds(which) -> float:
            start = perf_counter()
            backbone.nodes.KSampler().sample(which, 0, STEPS, 3.0, "euler", "normal", *prompts, blank, 1.0)
            return perf_counter() - start

        for which in (model, watched):  # the first run of each pays for loading
            seconds(which)
        ratios, plain = [], []
        for turn in range(rounds):
            pair = (model, watched) if turn % 2 else (watched, model)
            times = {which: seconds(which) for which in pair}
            ratios.append(times[watched] / times[model])
            plain.append(times[model])
    print(f"{STEPS} steps without capture: {median(plain):.3f} s; with capture: {median(ratios):.3f} times that")
    print(f"(median of {rounds} interleaved pairs; middle half {sorted(ratios)[rounds // 4]:.3f} to "
          f"{sorted(ratios)[-(rounds // 4) - 1]:.3f})")
    print(f"{capture.bytes // len(capture.runs):,} bytes held per image")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
