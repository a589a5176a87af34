"""How far the bundled decoders go from where the comparison ended: `python benchmarks/blend.py mini-build [scenes]`.

A bundled decoder is trained on from seed 0 and then drawn back a part of the way. Prints scores by the share of the way
that is left, on validation scenes: sprites and backgrounds that neither training nor a test set has.
"""

import sys
from pathlib import Path

from ldznet_core import load_decoder, load_host
from ldznet_core.mini.bank import Recipe, draw
from ldznet_core.mini.build import BUNDLED_KINDS
from ldznet_core.mini.decoders import Phrases, blend
from ldznet_core.mini.evaluation import COUNTS, questions, score
from ldznet_core.mini.predictors import Decoded

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 2323


def main(folder: Path, count: int) -> None:
    host = load_host(folder / "denoiser" / "mini.safetensors")
    about = host.model.about
    sets = {}
    for splits in (("train",), ("val",)):
        recipe = Recipe(about["size"], len(about["nouns"]), None, splits, ("val",), COUNTS)
        scenes = draw(folder / "world.zip", recipe, SEED, count)
        sets[splits[0]] = Phrases.of(scenes, host.model), questions(scenes)
    print("| decoder | share | " + " | ".join(f"{name} sprites: mIoU | absent: area" for name in sets) + " |")
    print("|---" * (2 + 2 * len(sets)) + "|")
    for kind in BUNDLED_KINDS:
        for share in SHARES:
            files = (folder / "decoders" / f"{kind}-{end}.safetensors" for end in ("0", "long"))
            decoder, cells = blend(*map(load_decoder, files), share), []
            for data, asked in sets.values():
                (result,) = score(host, Decoded(decoder), data, asked)
                cells += [f"{100 * result.scores.miou:.1f}", f"{100 * result.false_area:.1f}"]
            print(f"| {kind} | {share} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120)
