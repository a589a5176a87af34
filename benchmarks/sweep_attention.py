"""What masks without a decoder depend on: `python benchmarks/sweep_attention.py mini-build/world.zip [scenes]`.

Validation scenes of the miniature's world, none of which any set of `ldznet evaluate` holds. One setting is changed at
a time. What presence is worth is measured by `presence.py`. Writes benchmarks/results/sweep_attention.json.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from validation import validation
from writing import setting, write_result

from ldznet_core import load_backbone
from ldznet_core.backbones.families.unet import layers, plan
from ldznet_core.backbones.queries import Plan, Queries
from ldznet_core.evaluation.batches import Batch, batches
from ldznet_core.evaluation.metrics import Scores
from ldznet_core.evaluation.predictors import Answers, Predictor, Undecoded
from ldznet_core.evaluation.tables import Tally
from ldznet_core.mini.evaluation import redrawn
from ldznet_core.segment.attention import read_queries
from ldznet_core.segment.attention_maps import cross_attention
from ldznet_core.segment.base import POSITIONS_OFF
from ldznet_core.segment.guided_filter import REACH
from ldznet_core.segment.methods import METHODS

T = METHODS["attention"].timestep
REACHES = (REACH, 1 / 16, 1.5 / 16, 2 / 16, 2.5 / 16, 3 / 16)  # from 1/16 on in positions of the miniature's grid
CHOSEN_REACH = f"{POSITIONS_OFF / 16:.3f}"


# ---- other queries than those of one pass under no text, in the layers that `plan` chooses ----


def through(chosen: Plan, backbone, z: Tensor, captions: list[str]) -> Queries:
    """One pass over other layers."""
    return read_queries(backbone, z, backbone.embed([""]), chosen, T, 0)


def captioned(backbone, z: Tensor, captions: list[str]) -> Queries:
    """One pass under each scene's caption."""
    return read_queries(backbone, z, backbone.embed(captions), plan(backbone.unet_config, *z.shape[-2:]), T, 0)


@torch.inference_mode()
def alone(backbone, batch: Batch) -> Answers:
    """What a phrase's words win from its own start, end and padding, as in the model's own passes, stretched from
    minimum to maximum."""
    empty, masks, size = backbone.embed([""]), [], batch.examples[0].mask.shape
    for row, example in zip(batch.rows, batch.examples, strict=True):
        z, text = batch.z[row : row + 1], backbone.embed([example.phrase])
        queries = read_queries(backbone, z, empty, plan(backbone.unet_config, *z.shape[-2:]), T, 0)
        keys = backbone.project(text.context, queries.plan.keys(backbone.transformer))
        heads, words = backbone.unet_config.num_heads, slice(1, 1 + text.lengths[0])
        won = sum(cross_attention(q, k, heads)[..., words].sum(-1) for q, k in zip(queries.cross, keys, strict=True))
        won = (won - won.min()) / (won.max() - won.min())  # [1, 1, n]: the miniature is read on one grid only
        small = won.unflatten(-1, queries.shape(queries.plan.layers[0].level))
        masks.append(torch.nn.functional.interpolate(small, size, mode="bilinear")[0])
    return Answers(torch.cat(masks), None, REACH)


# ---- the settings ----

Setting = tuple[str, str, dict[str, Predictor]]
"""Its name, the value that was chosen, and what each value gives."""


def attention_settings(config, base: Predictor) -> Iterator[Setting]:
    """What attention masks depend on; `base` reads them as is done."""
    fine, coarse = sorted(config.attention_levels)  # 16x16 and 8x8 positions
    own = plan(config, 32, 32).own

    def of(*groups: tuple[float, int], kind: str = "") -> Predictor:
        """Cross-attention of levels by their weights, together as `plan` would weigh them."""
        chosen = (
            (weight, tuple(layer for layer in layers(config, level) if layer.block.startswith(kind)))
            for weight, level in groups
        )
        return Undecoded(capture=partial(through, Plan(tuple(chosen), own)))

    yield "timestep", str(T), {str(t): base if t == T else Undecoded(timestep=t) for t in (0, 50, 100, 200, 400)}
    yield "noises", "1", {"1": base, "4": Undecoded(samples=4)}
    yield "positions to a side", "16", {
        "8": of((1.0, coarse)), "16": base,
        "8 (0.7) and 16 (0.3)": of((0.7, coarse), (0.3, fine)), "8 (0.3) and 16 (0.7)": of((0.3, coarse), (0.7, fine)),
    }  # fmt: skip
    halves = {"encoder": of((1.0, fine), kind="input"), "decoder": of((1.0, fine), kind="output")}
    yield "layers of the UNet", "all", {**halves, "all": base}
    spread = {f"as {what}": Undecoded(spread=what) for what in ("stuff", "objects")}
    yield "spread along self-attention", "no", {"no": base, **spread}
    against = {"the empty text": base, "its own start, end and padding": alone}
    yield "softmax of the phrase against", "the empty text", against
    yield "conditioning", "no text", {"no text": base, "caption": Undecoded(capture=captioned)}
    yield "taken from", "one pass", {"one pass": base, "sampling": Undecoded(capture=redrawn)}


def noise_settings(base: Predictor) -> Iterator[Setting]:
    t, samples = METHODS["noise"].timestep, METHODS["noise"].samples
    timesteps = (200, 300, 400, 500, 600, 700)
    yield "timestep", str(t), {str(i): base if i == t else Undecoded("noise", timestep=i) for i in timesteps}
    yield "noises", str(samples), {str(i): base if i == samples else Undecoded("noise", samples=i) for i in (1, 2, 4)}


@dataclass(frozen=True)
class Bench:
    """The scenes, encoded, and what is asked of them."""

    backbone: object
    batches: list[Batch]

    def answers(self, predictor: Predictor) -> list[Answers]:
        return [predictor(self.backbone, batch) for batch in self.batches]

    def scores(self, answers: list[Answers]) -> Scores:
        tally = Tally()
        for batch, part in zip(self.batches, answers, strict=True):
            tally.add(batch, part)
        return tally.result().scores

    def percents(self, answers: list[Answers]) -> dict[str, float]:
        scores = self.scores(answers)
        values = {"mIoU": scores.miou, "IoU_FG": scores.iou_fg, "AP": scores.ap, "IoU at 0.5": scores.iou_at_default}
        return {name: round(100 * value, 1) for name, value in values.items()}

    def tried(self, setting: dict[str, Predictor]) -> dict[str, dict[str, float]]:
        """Scores by the value of a setting."""
        return {value: self.percents(self.answers(predictor)) for value, predictor in setting.items()}

    def reaches(self, answers: list[Answers]) -> dict[str, dict[str, float]]:
        """Scores by the reach of the edge step."""
        pairs = list(zip(self.batches, answers, strict=True))
        return {
            f"{reach:.3f}": self.percents([replace(part, reach=reach).refined(batch) for batch, part in pairs])
            for reach in REACHES
        }


def show(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main(pack: Path, count: int) -> None:
    backbone = load_backbone("mini")
    dataset = [e for e in validation(backbone, pack, count) if e.mask.any()]
    bench = Bench(backbone, list(batches(dataset, backbone)))
    attention, noise = Undecoded(), Undecoded("noise")
    changed = [("attention", *one) for one in attention_settings(backbone.unet_config, attention)]
    changed += [("noise", *one) for one in noise_settings(noise)]
    settings = {}
    for method, name, chosen, values in changed:
        settings[f"{method}: {name}"] = setting(chosen, bench.tried(values), "mIoU")
        show(f"{method}: {name}", str(settings[f"{method}: {name}"]))
    for method, base in (("attention", attention), ("noise", noise)):
        tried = bench.reaches(bench.answers(base))
        settings[f"{method}: reach of the edge step"] = setting(CHOSEN_REACH, tried, "mIoU")
        show(method, str(tried))
    about = {"scenes": count, "nouns": len(dataset)}
    write_result("sweep_attention", "sweep_attention.py mini-build/world.zip", **about, settings=settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
