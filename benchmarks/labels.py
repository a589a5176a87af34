"""Where the background should win a label map: `python benchmarks/labels.py mini-build/world.zip [scenes]`.

Validation scenes of the miniature's world; every thing in a scene is asked for, and masks compete. Mean IoU of labels,
the background among them, for each score that the background may get. Writes benchmarks/results/labels.json.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from validation import scenes
from writing import setting, write_result

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.segment.attention import AttentionSegmenter
from ldznet_core.segment.postprocess import BACKGROUND, exclusive

SCORES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SEED = 777


def truth(scene) -> tuple[list[str], np.ndarray]:
    """The nouns of a scene and its labels [S, S], 0 for the background."""
    nouns = list(dict.fromkeys(thing.sprite.noun for thing in scene.things))
    labels = np.zeros(scene.image.shape[:2], int)
    for thing in scene.things:
        labels[thing.mask] = nouns.index(thing.sprite.noun) + 1
    return nouns, labels


def ious(found: np.ndarray, labels: np.ndarray, count: int) -> list[float]:
    return [
        ((found == k) & (labels == k)).sum() / max(1, ((found == k) | (labels == k)).sum()) for k in range(count + 1)
    ]


def main(pack: Path, count: int) -> None:
    backbone = load_backbone("mini")
    asked = [(torch.from_numpy(s.image).float()[None] / 255, *truth(s)) for s in scenes(backbone, pack, count, SEED)]
    decoder = Segmenter(backbone, load_decoder("mini"), "empty")
    methods = {"light decoder": decoder, "attention": AttentionSegmenter(backbone)}
    settings = {}
    for name, find in methods.items():
        masks = [find(image, nouns)[0] for image, nouns, _ in asked]
        tried = {}
        for score in SCORES:
            each = [
                ious(exclusive(soft, score)[1].numpy(), labels, len(nouns))
                for soft, (_, nouns, labels) in zip(masks, asked, strict=True)
            ]
            tried[str(score)] = {"IoU": round(100 * float(np.mean(sum(each, []))), 1)}
        print(name, tried, flush=True)
        settings[f"{name}: background of a label map"] = setting(str(BACKGROUND), tried, "IoU")
    write_result("labels", "labels.py mini-build/world.zip", scenes=count, settings=settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 120)
