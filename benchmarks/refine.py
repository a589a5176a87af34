"""What the edge step is worth: `python benchmarks/refine.py mini-build/world.zip [scenes]`.

Scenes of the miniature's world at 512 pixels, masked by the bundled light decoder (which works at 256) and refined at
full size. Mean IoU, IoU within 8 pixels of the true edge, and the boundary F-score at 3 pixels, before and after.
Writes benchmarks/results/refine.json.
"""

import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from writing import write_result

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.mini.bank import Recipe, compose_scenes
from ldznet_core.mini.evaluation import examples
from ldznet_core.segment.guided_filter import refine

SPLITS = {"seen styles, new scenes": ("train",), "seen styles, unseen sprites": ("test",), "unseen styles": ("ood",)}
SIZE, SEED, BAND, TOLERANCE = 512, 123, 8, 3


def edge(mask: np.ndarray) -> np.ndarray:
    return mask & ~binary_erosion(mask, border_value=1)


def scores(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """IoU, IoU in a band about the true edge, boundary F-score, in percent."""
    band = distance_transform_edt(~edge(truth)) <= BAND

    def iou(where) -> float:
        return (found & truth & where).sum() / max(1, ((found | truth) & where).sum())

    ours, theirs = edge(found), edge(truth)
    if not ours.any() or not theirs.any():
        return 100 * iou(True), 100 * iou(band), 0.0
    precision = (distance_transform_edt(~theirs)[ours] <= TOLERANCE).mean()
    recall = (distance_transform_edt(~ours)[theirs] <= TOLERANCE).mean()
    f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return 100 * iou(True), 100 * iou(band), 100 * f


def main(pack: Path, count: int) -> None:
    backbone = load_backbone("mini")
    segment, nouns = Segmenter(backbone, load_decoder("mini")), len(backbone.model.about["nouns"])
    pairs, columns = {}, ("mIoU", f"IoU within {BAND} px of the true edge", f"boundary F at {TOLERANCE} px")
    for name, splits in SPLITS.items():
        scenes = compose_scenes(pack, Recipe(SIZE, nouns, None, splits, ("test",), (0.0, 0.6, 0.4)), SEED, count)
        before, after = [], []
        for scene in scenes:
            image = torch.from_numpy(scene.image.astype(np.float32) / 255)
            here = examples([scene])
            masks = segment(image[None], [e.phrase for e in here])[0]
            for results, soft in ((before, masks), (after, refine(masks, image))):
                results += [scores(one.numpy() > 0.5, e.mask) for one, e in zip(soft, here, strict=True)]
        old, new = (np.mean(x, axis=0).round(1).tolist() for x in (before, after))
        pairs[name] = {column: list(pair) for column, *pair in zip(columns, old, new, strict=True)}
        print(name, len(before), "masks", pairs[name], flush=True)
    large = torch.rand(4096, 4096, 3)
    mask = torch.nn.functional.interpolate(torch.rand(1, 1, 64, 64), (4096, 4096), mode="bilinear")[0]
    start = perf_counter()
    refine(mask, large)
    what = "edge step on 4096 x 4096 pixels, mask with 64 x 64 details"
    facts = {what: {"measured": f"{perf_counter() - start:.1f} s"}}
    about = {"scenes of each set": count, "before and after the edge step": pairs}
    write_result("refine", "refine.py mini-build/world.zip", **about, facts=facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50)
