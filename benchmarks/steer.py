"""Regions by words while sampling, on the miniature: `python benchmarks/steer.py [seeds]`.

Each seed draws two things, and the region's prompt changes the second into a third. The light decoder, asked for all
nouns of the miniature, names what is drawn there. It is compared with the same words put into one prompt, and with the
mask of the finished base drawing by LD-ZNet, held from the same share of the run.
Prints a line for each seed and writes benchmarks/results/steer.json.
"""

import json
import random
import sys
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.backbones import sampling
from ldznet_core.backbones.steering import Region
from ldznet_core.segment.base import PRESENT
from ldznet_core.segment.regions import reader

SIZE, STEPS = 128, 15
RESULTS = Path(__file__).parent / "results" / "steer.json"


class Painted:
    """A reader that knows the mask [1, H, W]."""

    def __init__(self, mask: torch.Tensor):
        self.mask = mask

    def modules(self, size, find) -> dict:
        return {}

    def masks(self, step) -> torch.Tensor:
        return self.mask


def named(
    segmenter: Segmenter, z: torch.Tensor, inside: torch.Tensor, nouns: list[str], noun: str
) -> tuple[bool, bool]:
    """Whether a decoder that is asked for all nouns names the thing in a region [H, W] of a latent right first, and
    within five guesses: by presence and by how much of the region the noun's mask fills."""
    found = segmenter.predict_latent(z, nouns)
    scores = (found.presence[0] - PRESENT).sigmoid() * found.masks[0][:, inside].mean(-1)
    guesses = [nouns[i] for i in scores.topk(5).indices.tolist()]
    return guesses[0] == noun, noun in guesses


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


@torch.inference_mode()
def main(seeds: int) -> None:
    torch.set_num_threads(1)
    sampling.STEPS = STEPS
    backbone = load_backbone("mini")
    segmenter, light = Segmenter(backbone, load_decoder("mini")), load_decoder("mini", "light")
    nouns = list(backbone.nouns)
    recogniser = Segmenter(backbone, light)
    found: dict[str, list[tuple[bool, bool, float]]] = {}
    seed = counted = 0
    while counted < seeds:
        one, other, new = random.Random(seed).sample(nouns, 3)
        seed += 1
        caption, change = (f"a {one} and a {thing} on a blue background" for thing in (other, new))
        alone = f"a {new} on a blue background"
        z, _ = backbone.sample(caption, SIZE, SIZE, seed=seed)
        mask = segmenter.predict_latent(z, [other]).masks[0]  # [1, H, W]
        if (mask > 0.5).sum() < 300:
            continue  # the base drawing lacks the thing, so that there is nothing to change
        counted += 1
        base, still = backbone.decode(z)[0], named(recogniser, z, mask[0] > 0.5, nouns, new)
        found.setdefault("base", []).append((*still, 0.0))
        outside = F.max_pool2d((mask > 0.5).float(), 17, stride=1, padding=8)[0] == 0
        runs = {
            "one prompt": {"caption": change},
            "attention": {"regions": [(alone, Region(), reader(backbone, None, [other]))]},
            "light decoder": {"regions": [(alone, Region(), reader(backbone, light, [other]))]},
            "oracle": {"regions": [(alone, Region(), Painted(mask))]},
        }
        line = []
        for name, options in runs.items():
            z, _ = backbone.sample(options.pop("caption", caption), SIZE, SIZE, seed=seed, **options)
            image = backbone.decode(z)[0]
            difference = float((image - base).abs().mean(-1)[outside].mean())
            found.setdefault(name, []).append((*named(recogniser, z, mask[0] > 0.5, nouns, new), difference))
            line.append(f"{name} {found[name][-1][0]:d}{found[name][-1][1]:d} {difference:.3f}")
        print(f"{counted:3d} {other} -> {new}:", "; ".join(line), flush=True)
        summary = {
            name: {
                "named first": round(mean(r[0] for r in rows), 3),
                "named in five": round(mean(r[1] for r in rows), 3),
                "change outside": round(mean(r[2] for r in rows), 4),
            }
            for name, rows in found.items()
        }
        result = {
            "command": f"python benchmarks/steer.py {seeds}",
            "machine": {"cores": 2},
            "seeds": counted,
            "runs": summary,
            "facts": facts(summary, counted),
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
