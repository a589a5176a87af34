"""How far the bundled decoders go from where the comparison ended: `python benchmarks/blend.py mini-build [scenes]`.

A bundled decoder is trained on from seed 0 and then drawn back a part of the way. Prints scores by the share of the way
that is left, on scenes of training sprites and of sprites kept for validation, all on validation backgrounds. Those
sprites are also among the unseen ones of `ldznet evaluate`, on other backgrounds.
"""

import sys
from pathlib import Path

from validation import validation

from ldznet_core import load_backbone, load_decoder
from ldznet_core.evaluation.predictors import Decoded
from ldznet_core.evaluation.tables import score
from ldznet_core.mini.decoders import blend
from ldznet_core.mini.steps import SETTINGS, Build
from ldznet_core.mini.steps.mask_decoders import BUNDLED_KINDS, decoder_file

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SEED = 2323


def main(folder: Path, count: int) -> None:
    backbone = load_backbone(Build(folder, SETTINGS["cpu"]).small)
    sets = {sprites: validation(backbone, folder / "world.zip", count, SEED, sprites) for sprites in ("train", "val")}
    print("| decoder | share | " + " | ".join(f"{name} sprites: mIoU | absent: area" for name in sets) + " |")
    print("|---" * (2 + 2 * len(sets)) + "|")
    for kind in BUNDLED_KINDS:
        first, last = (load_decoder(decoder_file(folder, f"{kind}-{end}")) for end in ("0", "long"))
        for share in SHARES:
            decoder, cells = blend(first, last, share), []
            for dataset in sets.values():
                (result,) = score(backbone, Decoded(decoder), dataset)
                cells += [f"{100 * result.scores.miou:.1f}", f"{100 * result.false_area:.1f}"]
            print(f"| {kind} | {share} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120)
