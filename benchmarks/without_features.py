"""What a decoder loses without features: `python benchmarks/without_features.py mini-build [scenes]`.

A decoder that was trained on features may still not need them: here it gets zeros in their place. The bundled ones, and
LD-ZNet of every seed of the comparison; features are read under no text. Writes
benchmarks/results/without_features.json.
"""

import sys
from pathlib import Path
from statistics import mean

import torch
from writing import write_result

from ldznet_core import load_backbone, load_decoder
from ldznet_core.decoders.base import Decoder
from ldznet_core.evaluation.predictors import Decoded
from ldznet_core.evaluation.tables import score
from ldznet_core.mini.evaluation import SEEN, examples, scenes_of
from ldznet_core.mini.steps import SETTINGS, Build

KINDS = {"light decoder": "light", "LD-ZNet": "ldznet"}
TESTED = (SEEN, "openmoji", "fluent-emoji-high-contrast")


def without_features(decoder: Decoder) -> Decoder:
    """The same decoder, which sees zeros where it is given features."""
    predict = decoder.predict
    decoder.predict = lambda z, context, features=(), timesteps=None: predict(
        z, context, [torch.zeros_like(one) for one in features], timesteps
    )
    return decoder


def main(folder: Path, count: int) -> None:
    torch.set_num_threads(1)
    build = Build(folder, SETTINGS["cpu"])
    backbone = load_backbone("mini")
    sets = {name: examples(scenes_of(name, backbone, build.pack, count)) for name in TESTED}
    groups = {f"bundled {name}": [load_decoder("mini", kind=kind)] for name, kind in KINDS.items()}
    files = sorted((build.grown.parent / "decoders").glob("ldznet-[0-9].safetensors"))
    groups[f"LD-ZNet of the comparison, mean of {len(files)} seeds"] = [load_decoder(file) for file in files]
    facts = {}
    for name, decoders in groups.items():
        read = miou(backbone, decoders, sets)
        unread = miou(backbone, [without_features(one) for one in decoders], sets)
        shown = ", ".join(f"{of} {read[of]:.1f} → {unread[of]:.1f}" for of in sets)
        facts[f"{name}: mIoU with its features → with zeros in their place"] = {"measured": shown}
        print(name, shown, flush=True)
    write_result("without_features", f"without_features.py mini-build {count}", scenes=count, facts=facts)


def miou(backbone, decoders: list[Decoder], sets: dict[str, list]) -> dict[str, float]:
    """Percent, the mean over decoders, by set."""
    found = {of: [score(backbone, Decoded(one, "empty"), data)[0] for one in decoders] for of, data in sets.items()}
    return {of: 100 * mean(result.scores.miou for result in results) for of, results in found.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)
