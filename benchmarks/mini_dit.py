"""Masks from the attention of the miniature transformer:
`python benchmarks/mini_dit.py mini-build/world.zip [scenes] [model]`.

First one setting is changed at a time on 60 validation scenes of the miniature's world, which no set of
`ldznet evaluate` holds, and the best of each is taken. Then what was chosen is scored on all sets. Prints Markdown
tables and writes benchmarks/results/mini_dit.json.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from sweep_attention import Bench, show
from validation import validation
from writing import RESULTS, write_result

from ldznet_core import load_backbone
from ldznet_core.evaluation.batches import Batch, batches
from ldznet_core.evaluation.predictors import Answers, Method, gathered
from ldznet_core.evaluation.tables import Evaluation
from ldznet_core.mini.evaluation import SEEN, SETS, table
from ldznet_core.segment.joint_attention import BACKGROUND, JointAttentionSegmenter
from ldznet_core.segment.joint_maps import READS

NAME = "transformer's attention"
CHOOSE_ON = 60  # scenes
WORLD = ("background", "grass", "photo")  # background words that the miniature knows


@dataclass(frozen=True)
class Reading:
    """One way to read attention, as a predictor; the names are those of `JointAttentionSegmenter`."""

    timestep: int = 500
    blocks: tuple[int, ...] = ()
    read: str = "both"
    spread: str = "auto"
    background: tuple[str, ...] = BACKGROUND
    riding: bool = False  # along with the picture's own caption

    def __call__(self, backbone, batch: Batch) -> Answers:
        segmenter = JointAttentionSegmenter(
            backbone, spread=self.spread, blocks=self.blocks, background=self.background, read=self.read
        )
        return gathered([
            segmenter.predict_latent(
                batch.z[row : row + 1], [e.phrase for e in picture], timestep=self.timestep,
                caption=batch.captions[row] if self.riding else "",
            )
            for row, picture in enumerate(batch.pictures)
        ])  # fmt: skip


def settings(blocks: int) -> Iterator[tuple[str, dict[str, dict]]]:
    """One setting after the other: its name, and its values by the names that the table gives them."""
    words = {"four words of photographs": BACKGROUND, "three of its own": WORLD, "one": ("background",)}
    yield "background words", {name: {"background": value} for name, value in words.items()}
    yield "timestep", {str(timestep): {"timestep": timestep} for timestep in (50, 100, 200, 300, 500, 700)}
    numbers = {f"block {i}": (i,) for i in range(blocks)} | {"all blocks": tuple(range(blocks))}
    yield "blocks", {name: {"blocks": value} for name, value in numbers.items()}
    yield "read", {
        f"{read}, {how}": {"read": read, "spread": spread}
        for how, spread in (("as it is", "none"), ("kept where alike", "auto"))
        for read in READS
    }
    yield "caption", {"none": {"riding": False}, "its own, phrases ride along": {"riding": True}}


def scores(bench: Bench, reading: Reading) -> dict[str, float]:
    """In percent: mIoU before and after the edge step, and the area under the curve of presence."""
    answers = bench.answers(reading)
    there = torch.tensor([bool(e.mask.any()) for batch in bench.batches for e in batch.examples])
    presence = torch.cat([one.presence for one in answers])
    answers = [replace(one, presence=None) for one in answers]
    refined = [one.refined(batch) for one, batch in zip(answers, bench.batches, strict=True)]
    area = (presence[there][:, None] > presence[~there][None]).float().mean()
    values = {"mIoU": bench.scores(answers).miou, "refined": bench.scores(refined).miou, "presence": float(area)}
    return {name: round(100 * value, 1) for name, value in values.items()}


def choose(bench: Bench, blocks: int) -> tuple[Reading, dict[str, dict]]:
    """The best reading, by the sum of its scores, and what was tried on the way, setting by setting."""
    best, tried = Reading(), {}
    for setting, values in settings(blocks):
        rows = {name: scores(bench, replace(best, **value)) for name, value in values.items()}
        chosen = max(rows, key=lambda name: sum(rows[name].values()))
        best = replace(best, **values[chosen])
        tried[f"transformer: {setting}"] = {"chosen": chosen, "shown": list(rows[chosen]), "tried": rows}
        for name, row in rows.items():
            show(f"| {setting}: {name} | " + " | ".join(map(str, row.values())) + " |")
    return best, tried


def goals(rows: list[dict], presence: float) -> dict[str, dict]:
    """What was wanted of the miniature transformer, and whether it came: the figures of the attention of the other
    miniature, of a UNet, are those that are recorded."""

    def scores(of: list[dict], method: str) -> dict[tuple[str, bool], float]:
        return {(row["set"], row["refined"]): 100 * row["miou"]["mean"] for row in of if row["method"] == method}

    unet = scores(json.loads((RESULTS / "evaluate.json").read_text())["rows"], "attention")
    ours = scores(rows, NAME)
    gains = {key: ours[key] - unet[key] for key in ours}
    worst = min(gains, key=gains.get)
    where = f"{worst[0]}{', refined' if worst[1] else ''}"
    there = ours[SEEN, True]
    return {
        f"{NAME}, refined, {SEEN}, mIoU": {"measured": f"{there:.1f}", "goal": "60", "met": there >= 60},
        f"{NAME} less the UNet's, mIoU on the set where it is worst": {
            "measured": f"{gains[worst]:+.1f} ({where})", "goal": "0", "met": gains[worst] > 0,
        },
        f"{NAME}, area under the curve of presence, validation scenes": {
            "measured": f"{presence / 100:.3f}", "goal": "0.85", "met": presence >= 85,
        },
    }  # fmt: skip


def main(pack: Path, count: int, model: str) -> None:
    backbone = load_backbone(model)
    bench = Bench(backbone, list(batches(validation(backbone, pack, CHOOSE_ON), backbone)))
    show(f"{CHOOSE_ON} scenes", "", "| reading | mIoU | refined | presence |", "|---|---|---|---|")
    best, tried = choose(bench, len(backbone.model.transformer.joint_blocks))
    best = replace(best, riding=False)  # as a user has it, who says what to find and not what the picture shows
    chosen = tried["transformer: caption"]["tried"]["none"]
    method = Method(NAME, "empty", (best,))
    rows = [row.as_dict() for row in table(backbone, [method], pack, SETS, count, Evaluation(edges=True))]
    show("", "| set | method | mIoU |", "|---|---|---|")
    show(*(f"| {row['set']} | {row['method']} | {100 * row['miou']['mean']:.1f} |" for row in rows))
    about = {"scenes": count, "trained": backbone.model.about["trained"], "facts": goals(rows, chosen["presence"])}
    about |= {"chosen": asdict(best), "settings": tried, "rows": rows}
    write_result("mini_dit", "mini_dit.py mini-build/world.zip", **about)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150, (sys.argv + [""] * 4)[3] or "mini-dit")
