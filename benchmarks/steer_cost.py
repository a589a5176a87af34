"""What a region by words costs a KSampler run of ComfyUI, against the same run with stock Set Mask:
`python benchmarks/steer_cost.py [pairs]`. COMFYUI_PATH names an engine of 2025 or later.

The processor's time is taken, in interleaved pairs, on the miniature.
"""

import sys
from pathlib import Path
from statistics import median
from time import process_time

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import engine

STEPS = 20


def main(pairs: int) -> None:
    stock = engine.start()
    assert stock, "no ComfyUI engine: set COMFYUI_PATH, or install it as the README says for the tests"
    nodes = engine.node_classes(engine.load_pack())
    with torch.inference_mode():
        model, clip, *_ = nodes["LDZNetLoadMini"].execute().args
        light = nodes["LDZNetLoadDecoder"].execute("miniature: light (bundled)").args[0]
        encode = stock.nodes.CLIPTextEncode().encode
        base, change, negative = (
            encode(clip, text)[0] for text in ("a panda and a balloon on a blue background", "a heart", "")
        )
        mask = torch.zeros(1, 256, 256)
        mask[:, :128, 128:] = 1
        set_words = nodes["LDZNetConditioningSetWords"].execute
        ways = {
            "Set Mask": stock.nodes.ConditioningSetMask().append(change, mask, "default", 1.0)[0],
            "attention": set_words(change, clip, "balloon").args[0],
            "light decoder": set_words(change, clip, "balloon", decoder=light).args[0],
            "light decoder, follow": set_words(change, clip, "balloon", decoder=light, follow=True).args[0],
        }

        def seconds(marked: list) -> float:
            blank, start = {"samples": torch.zeros(1, 4, 32, 32)}, process_time()
            stock.nodes.KSampler().sample(model, 0, STEPS, 3.0, "euler", "normal", base + marked, negative, blank, 1.0)
            return process_time() - start

        seconds(base)  # pays for loading
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(pairs):
            for name, marked in ways.items():
                times[name].append(seconds(marked))
                print(f"{name}: {times[name][-1]:.2f} s", flush=True)
        for name in ways:
            ratios = [a / b for a, b in zip(times[name], times["Set Mask"], strict=True)]
            print(f"{name}: {median(ratios):.3f} times Set Mask")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
