"""What going over a large picture in windows gains: `python benchmarks/tiles.py mini-build/world.zip [scenes]`.

Scenes of two or three things on 1024 pixels, sixteen times the area that the miniature works on, each asked also for a
thing that is not there. Small things take 6 to 18 percent of a side, large ones as much as in training. Prints scores
of the whole picture alone, of the windows alone, of the higher of the two, and of what `--tiles` does: the whole counts
as much as its peak.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.data.base import Example
from ldznet_core.evaluation.metrics import PhraseMetrics
from ldznet_core.mini.evaluation import COUNTS, examples
from ldznet_core.mini.sprites import load_pack, nouns
from ldznet_core.mini.world import compose
from ldznet_core.segment.tiles import blend, starts

SIDE, SEED = 1024, 4242
SCALES = {"small": (0.06, 0.18), "large": None}
WAYS = {
    "whole picture": lambda whole, windows: whole,
    "windows": lambda whole, windows: windows,
    "higher of both": torch.maximum,
    "by the peak": lambda whole, windows: torch.lerp(windows, whole, whole.amax((-2, -1), keepdim=True)),
}


def predict(segmenter: Segmenter, image: Tensor, phrases: list[str]) -> tuple[Tensor, Tensor]:
    """Masks [P, H, W] of an image [1, H, W, 3]: by one look at the whole, and by windows."""
    side = round(segmenter.area**0.5)
    corners = [(top, left) for top in starts(SIDE, side) for left in starts(SIDE, side)]
    looks = ((top, left, segmenter(image[:, top : top + side, left : left + side], phrases)) for top, left in corners)
    return segmenter(image, phrases)[0], blend(looks, (SIDE, SIDE))[0]


def tell(name: str, answers: list[tuple[list[Example], Tensor, Tensor]]) -> None:
    for way, combine in WAYS.items():
        metrics, absent = PhraseMetrics(), []
        for asked, whole, windows in answers:
            for example, mask in zip(asked, combine(whole, windows), strict=True):
                if example.mask.any():
                    metrics.update(mask[None], torch.from_numpy(example.mask)[None])
                else:
                    absent.append((mask > 0.5).float().mean().item())
        scores = metrics.compute()
        print(f"| {name}: {scores.samples} | {way} | {100 * scores.miou:.1f} | {100 * scores.iou_at_default:.1f} | "
              f"{100 * np.mean(absent):.2f} % |", flush=True)  # fmt: skip


def main(pack_file: Path, count: int) -> None:
    backbone = load_backbone("mini")
    segmenter, pack = Segmenter(backbone, load_decoder("mini")), load_pack(pack_file)
    known = nouns(pack, len(backbone.model.about["nouns"]))
    sprites = pack.select(nouns=known, splits=("train",))
    backgrounds = [background for background in pack.backgrounds if background.split == "val"]
    print("| things: phrases | masks of | mIoU | IoU at 0.5 | marked of what is absent |\n|---|---|---|---|---|")
    for name, scale in SCALES.items():
        rng, answers = np.random.default_rng(SEED), []
        for _ in range(count):
            scene = compose(rng, sprites, backgrounds, SIDE, COUNTS, scale=scale)
            asked = examples([scene], known)
            image = torch.from_numpy(scene.image)[None].float() / 255
            answers.append((asked, *predict(segmenter, image, [example.phrase for example in asked])))
        tell(name, answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12)
