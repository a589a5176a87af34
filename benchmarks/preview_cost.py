"""What words shown while they are drawn cost a KSampler run of ComfyUI, against a run under Capture without words:
`python benchmarks/preview_cost.py [pairs] [steps]`. COMFYUI_PATH names an engine of 2025 or later.

The processor's time is taken, in interleaved pairs, on the miniature. The previews go by that clock as well: by that of
a busy machine there would be more of them. Each is made a JPEG, as ComfyUI's server does.
"""

import importlib
import sys
from io import BytesIO
from pathlib import Path
from statistics import median
from time import process_time
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import engine


def main(pairs: int, steps: int) -> None:
    stock = engine.start()
    assert stock, "no ComfyUI engine: set COMFYUI_PATH, or install it as the README says for the tests"
    pack = engine.load_pack()
    nodes = engine.node_classes(pack)
    importlib.import_module(f"{pack.__name__}.ldznet_core.backbones.comfy_preview").time = SimpleNamespace(
        monotonic=process_time
    )
    sent = []

    def send(event: int, data: tuple, client: str) -> None:
        (_, picture, _), _ = data
        picture.save(BytesIO(), "JPEG", quality=95)
        sent.append(event)

    page = {"feature_flags": {"supports_preview_metadata": True}}
    server = SimpleNamespace(sockets_metadata={"page": page}, client_id="page", last_prompt_id="run", send_sync=send)
    sys.modules["server"] = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    capture = nodes["LDZNetCapture"]
    capture.hidden = SimpleNamespace(unique_id="1")
    with torch.inference_mode():
        model, clip, *_ = nodes["LDZNetLoadMini"].execute().args
        encode = stock.nodes.CLIPTextEncode().encode
        prompts = [encode(clip, text)[0] for text in ("a panda and a balloon on a blue background", "")]
        without, shown = (capture.execute(model, clip, words).args[0] for words in ("", "panda, balloon"))

        def seconds(which) -> float:
            blank, start = {"samples": torch.zeros(1, 4, 32, 32)}, process_time()
            stock.nodes.KSampler().sample(which, 0, steps, 3.0, "euler", "normal", *prompts, blank, 1.0)
            return process_time() - start

        for which in (without, shown):  # the first run of each pays for loading
            seconds(which)
        sent.clear()
        ratios, plain = [], []
        for turn in range(pairs):
            pair = (without, shown) if turn % 2 else (shown, without)
            times = {which: seconds(which) for which in pair}
            plain.append(times[without])
            ratios.append(times[shown] / times[without])
            print(f"{plain[-1]:.2f} s without words, {ratios[-1]:.3f} times that with them", flush=True)
    assert sent, "this engine shows no previews of words"
    ratios.sort()
    print(f"{steps} steps, {median(plain):.2f} s of the processor; {len(sent) / pairs:.1f} previews a run: "
          f"{median(ratios):.3f} times the run without (middle half {ratios[pairs // 4]:.3f} to "
          f"{ratios[-(pairs // 4) - 1]:.3f}, {pairs} pairs)")


if __name__ == "__main__":
    main(*map(int, (sys.argv[1:] + ["20", "60"][len(sys.argv) - 1 :])))
