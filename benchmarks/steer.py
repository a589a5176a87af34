"""Regions by words while sampling, on the miniature: `python benchmarks/steer.py mini-build/world.zip [seeds]`.

Each seed draws two things, and the region's prompt changes the second into a third. A classifier that was trained on
composed sprites (`ldznet mini build recognise`) names what is drawn there. It is compared with the same words put into
one prompt, and with the mask of the finished base drawing by the light decoder, held from the same share of the run.
Prints a line for each seed and writes benchmarks/results/steer.json.
"""

import json
import random
import sys
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from writing import RESULTS, write_result

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.backbones import sampling
from ldznet_core.backbones.steering import Region
from ldznet_core.mini.recognise import recognise, train_classifier
from ldznet_core.mini.steps import SETTINGS
from ldznet_core.mini.steps.model import CLASSIFIER_EPOCHS
from ldznet_core.segment.regions import reader

STEPS = 15
FILLED = 0.75  # of the side of what the classifier sees, by the thing


class Painted:
    """A reader that knows the mask [1, H, W]."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask

    def modules(self, size, find) -> dict:
        return {}

    def masks(self, step) -> torch.Tensor:
        return self.mask


def around(image: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """The square uint8 [1, S, S, 3] of a picture [H, W, 3] in 0..1 that a mask [H, W] fills to `FILLED` of the side,
    beyond the picture its edge repeated."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = [(int(places[0]) + int(places[-1])) / 2 for places in (rows, columns)]
    half = max(len(rows), len(columns)) / FILLED / 2
    places = [
        torch.arange(round(middle - half), round(middle + half)).clamp(0, side - 1)
        for middle, side in zip(box, mask.shape, strict=True)
    ]
    cut = image[places[0]][:, places[1]]
    return (cut * 255).round().clamp(0, 255).byte().numpy()[None]


def facts(runs: dict[str, dict[str, float]], seeds: int) -> dict[str, dict]:
    """What was asked of regions: the thing is changed as with the finished picture's mask, and no more outside."""
    oracle, one = runs["oracle"], runs["one prompt"]
    found = {}
    for name in ("light decoder", "attention"):
        run = runs[name]
        found[f"region by {name}: the changed thing named in five guesses"] = {
            "measured": f"{run['named in five']:.0%} (mask of the finished picture: {oracle['named in five']:.0%}, "
            f"words in one prompt: {one['named in five']:.0%}; {seeds} seeds, {STEPS} steps)",
            "goal": "within 10 points of the mask of the finished picture",
            "met": run["named in five"] >= oracle["named in five"] - 0.1,
        }
        ratio = run["change outside"] / oracle["change outside"]
        found[f"region by {name}: change outside it, over that with the finished picture's mask"] = {
            "measured": f"{ratio:.2f} (words in one prompt: {one['change outside'] / oracle['change outside']:.2f})",
            "goal": "at most 1.2",
            "met": ratio <= 1.2,
        }
    return found


def main(pack: Path, seeds: int) -> None:
    torch.set_num_threads(1)
    sampling.STEPS = STEPS
    backbone = load_backbone("mini")
    side = backbone.model.about["size"]
    nouns, light = list(backbone.nouns), load_decoder("mini", "light")
    classifier = train_classifier(pack, nouns, side, SETTINGS["cpu"].scenes, CLASSIFIER_EPOCHS)
    segmenter = Segmenter(backbone, load_decoder("mini"))
    found: dict[str, list[tuple[float, float, float]]] = {}
    seed = counted = 0
    while counted < seeds:
        one, other, new = random.Random(seed).sample(nouns, 3)
        seed += 1
        caption, change = (f"a {one} and a {thing} on a blue background" for thing in (other, new))
        alone = f"a {new} on a blue background"
        z, _ = backbone.sample(caption, side, side, seed=seed)
        mask = segmenter.predict_latent(z, [other]).masks[0]  # [1, H, W]
        inside = mask[0] > 0.5
        if inside.float().mean() < 0.018:
            continue  # the base drawing lacks the thing, so that there is nothing to change
        counted += 1
        outside = F.max_pool2d(inside[None].float(), side // 8 + 1, stride=1, padding=side // 16)[0] == 0
        base = backbone.decode(z)[0]
        runs = {
            "base": {},
            "one prompt": {"caption": change},
            "attention": {"regions": [(alone, Region(), reader(backbone, None, [other]))]},
            "light decoder": {"regions": [(alone, Region(), reader(backbone, light, [other]))]},
            "oracle": {"regions": [(alone, Region(), Painted(mask))]},
        }
        line = []
        for name, options in runs.items():
            z, _ = backbone.sample(options.pop("caption", caption), side, side, seed=seed, **options)
            image = backbone.decode(z)[0]
            seen = recognise(classifier, around(image, inside), torch.tensor([nouns.index(new)]))
            difference = float((image - base).abs().mean(-1)[outside].mean())
            found.setdefault(name, []).append((seen.top1, seen.top5, difference))
            line.append(f"{name} {seen.top1:.0f}{seen.top5:.0f} {difference:.3f}")
        print(f"{counted:3d} {other} -> {new}:", "; ".join(line), flush=True)
    summary = {
        name: {
            "named first": round(mean(r[0] for r in rows), 3),
            "named in five": round(mean(r[1] for r in rows), 3),
            "change outside": round(mean(r[2] for r in rows), 4),
        }
        for name, rows in found.items()
    }
    kept = json.loads((RESULTS / "steer.json").read_text(encoding="utf-8"))
    found_now = {**kept["facts"], **facts(summary, counted)}
    write_result("steer", f"steer.py mini-build/world.zip {seeds}", seeds=counted, runs=summary, facts=found_now)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 64)
