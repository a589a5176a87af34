"""Scores on all sets: `python benchmarks/evaluate.py mini-build [bundled|seeds] [scenes]`.

`bundled` are the decoders that the package carries and the methods that need none, before and after the edge step, in
the rows that `ldznet evaluate --pack mini-build/world.zip --refine` prints. `seeds` are the decoders of the build's
comparison, those of one kind trained from several seeds. Sets are scored side by side, one a core. Writes
benchmarks/results/evaluate.json or evaluate_seeds.json, with what goals say of them.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import torch
from writing import write_result

from ldznet_core import load_backbone
from ldznet_core.checkpoints.bundled import BUNDLED
from ldznet_core.decoders.base import CONDITIONS
from ldznet_core.evaluation.predictors import Method, by_kind
from ldznet_core.evaluation.tables import Evaluation
from ldznet_core.mini.evaluation import FREE, GENERATED, OOD_STYLES, SEEN, SETS, table
from ldznet_core.mini.steps import SETTINGS, Build

BASELINE = "mark everything"
LONGEST = (GENERATED, *(name for name in SETS if name != GENERATED))  # what is drawn anew comes first

Rows = list[dict]


def bundled() -> list[Method]:
    free = [method for methods in FREE.values() for method in methods]
    return by_kind(sorted(BUNDLED.glob("*net.safetensors")) + [BUNDLED / "light.safetensors"]) + free


def seeds(build: Build) -> list[Method]:
    """Decoders of the comparison, LD-ZNet with its features under each text."""
    return by_kind(sorted((build.grown.parent / "decoders").glob("*-[0-9].safetensors")), texts=CONDITIONS)


def score(build: Build, which: str, scenes: int, name: str) -> Rows:
    torch.set_num_threads(1)
    methods, backbone = (bundled(), "mini") if which == "bundled" else (seeds(build), build.grown)
    how = Evaluation(edges=which == "bundled")
    return [rounded(row.as_dict()) for row in table(load_backbone(backbone), methods, build.pack, (name,), scenes, how)]


def rounded(row: dict) -> dict:
    """The same with four digits."""
    return json.loads(json.dumps(row), parse_float=lambda digits: round(float(digits), 4))


class Scores:
    """Rows by set and method, masks as they are."""

    def __init__(self, rows: Rows):
        first = {}  # the first row of a method: of LD-ZNet the one whose features are read under the phrase
        for row in rows:
            first.setdefault((row["refined"], row["set"], row["method"]), row)
        self.rows = {key[1:]: row for key, row in first.items() if not key[0]}
        self.refined = {key[1:]: row for key, row in first.items() if key[0]}

    def miou(self, dataset: str, method: str) -> float:
        return 100 * self.rows[dataset, method]["miou"]["mean"]

    def presence(self, dataset: str, method: str) -> float:
        return self.rows[dataset, method]["presence_auc"]["mean"]

    def gain(self, better: str, than: str, sets: Sequence[str]) -> float:
        return mean(self.miou(name, better) - self.miou(name, than) for name in sets)


def at_least(value: float, goal: float, shown: str) -> dict:
    """A fact with its goal, which has a sign where what is shown has one."""
    return {"measured": shown, "goal": f"{goal:+g}" if goal and shown[0] in "+-" else f"{goal:g}", "met": value >= goal}


def gain_at_least(value: float, goal: float) -> dict:
    """A gain in points, with a second digit where one would make it look as if it reached the goal."""
    rounded_up = value < goal <= round(value, 1)
    return at_least(value, goal, f"{value:+.2f}" if rounded_up else f"{value:+.1f}")


def of_decoders(scores: Scores, about: str) -> Iterator[tuple[str, dict]]:
    """What is asked of both comparisons."""
    names = {"ldznet": "LD-ZNet", "light": "light decoder"}
    names = {kind: name for kind, name in names.items() if (SEEN, kind) in scores.rows}
    for kind, name in names.items():
        value = scores.miou(SEEN, kind)
        yield f"{about}{name}, new scenes, mIoU", at_least(value, 82, f"{value:.1f}")
    for sets, where, goal in (
        ((SEEN,), "new scenes", 1.4), ((GENERATED,), "drawn by the miniature", 2.0),
        (OOD_STYLES, "mean of the unseen styles", 3.0),
    ):
        value = scores.gain("ldznet", "znet", sets)
        yield f"{about}LD-ZNet over ZNet, {where}, mIoU", gain_at_least(value, goal)
    for kind, name in names.items():
        value, style = min((scores.gain(kind, BASELINE, (style,)), style) for style in OOD_STYLES)
        what = f"{about}{name} over marking everything, mIoU on the unseen style where it is worst"
        yield what, at_least(value, 10, f"{value:+.1f} ({style})")
    if "light" not in names:
        return
    value, style = min((scores.gain("light", "ldznet", (style,)), style) for style in OOD_STYLES)
    what = f"{about}light decoder less LD-ZNet, mIoU on the unseen style where it is worst"
    yield what, at_least(value, 0, f"{value:+.1f} ({style})")


def of_bundled(scores: Scores) -> Iterator[tuple[str, dict]]:
    yield from of_decoders(scores, "bundled ")
    value = scores.presence(SEEN, "light")
    yield "bundled light decoder, area under the curve of presence, new scenes", at_least(value, 0.95, f"{value:.3f}")
    each = {style: scores.presence(style, "light") for style in OOD_STYLES}
    value, listed = mean(each.values()), ", ".join(f"{style} {auc:.3f}" for style, auc in each.items())
    what = "bundled light decoder, area under the curve of presence, mean of the unseen styles"
    yield what, at_least(value, 0.9, f"{value:.3f} ({listed})")
    captured = "attention, captured"
    value = 100 * scores.miou(SEEN, captured) / scores.miou(SEEN, "ldznet")
    refined = 100 * scores.refined[SEEN, captured]["miou"]["mean"] / scores.refined[SEEN, "ldznet"]["miou"]["mean"]
    what = "captured attention, share of the bundled LD-ZNet's mIoU in new scenes"
    yield what, {"measured": f"{value:.0f} % (both refined: {refined:.0f} %)", "goal": "80 %", "met": value >= 80}


def of_seeds(scores: Scores) -> Iterator[tuple[str, dict]]:
    for name, where, goal in ((SEEN, "new scenes", 4.6), (GENERATED, "drawn by the miniature", 5.0)):
        value = scores.gain("znet", "rgbnet", (name,))
        yield f"three seeds: ZNet over RGBNet, {where}, mIoU", gain_at_least(value, goal)
    yield from of_decoders(scores, "three seeds: ")


def main(folder: Path, which: str = "bundled", scenes: int = 150) -> None:
    work = partial(score, Build(folder, SETTINGS["cpu"]), which, scenes)
    rows: Rows = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for found in pool.map(work, LONGEST):
            rows += found
            print("\n".join(f"{r['set']}: {r['method']} {r['refined']} {r['miou']}" for r in found), flush=True)
    rows.sort(key=lambda row: SETS.index(row["set"]))
    facts = dict((of_bundled if which == "bundled" else of_seeds)(Scores(rows)))
    name = {"bundled": "evaluate", "seeds": "evaluate_seeds"}[which]
    write_result(name, f"evaluate.py mini-build {which} {scenes}", scenes=scenes, facts=facts, rows=rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3], *map(int, sys.argv[3:4]))
