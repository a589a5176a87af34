"""What masks without a decoder depend on: `python benchmarks/sweep_attention.py mini-build/world.zip [scenes]`.

Validation scenes of the miniature's world, none of which any set of `ldznet evaluate` holds; prints Markdown tables.
One setting is changed at a time. What presence is worth is measured by `presence.py`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from validation import validation

from ldznet_core import load_backbone
from ldznet_core.backbones.families.unet import layers, plan
from ldznet_core.backbones.queries import Layer, Plan, Queries
from ldznet_core.evaluation.batches import Batch, batches
from ldznet_core.evaluation.metrics import Scores
from ldznet_core.evaluation.predictors import Answers, Predictor, Undecoded
from ldznet_core.evaluation.tables import Tally
from ldznet_core.mini.evaluation import redrawn
from ldznet_core.segment.attention import read_queries
from ldznet_core.segment.attention_maps import cross_attention
from ldznet_core.segment.guided_filter import REACH
from ldznet_core.segment.methods import METHODS

T = METHODS["attention"].timestep
REACHES = (REACH, 1 / 16, 1.5 / 16, 2 / 16, 2.5 / 16, 3 / 16)  # from 1/16 on in positions of the miniature's grid


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


# ---- the tables ----


def layer_sets(config) -> Iterator[tuple[str, Plan]]:
    """The coarser level alone, two together as `plan` would weigh them, and halves of the finer."""
    fine, coarse = sorted(config.attention_levels)  # 16x16 and 8x8 positions
    own = plan(config, 32, 32).own

    def group(level: int, kind: str = "") -> tuple[Layer, ...]:
        return tuple(layer for layer in layers(config, level) if layer.block.startswith(kind))

    yield "cross-attention of 8x8 positions", Plan(((1.0, group(coarse)),), own)
    yield "of 8x8 (0.7) and 16x16 (0.3)", Plan(((0.7, group(coarse)), (0.3, group(fine))), own)
    yield "of 8x8 (0.3) and 16x16 (0.7)", Plan(((0.3, group(coarse)), (0.7, group(fine))), own)
    yield "of 16x16, encoder only", Plan(((1.0, group(fine, "input")),), own)
    yield "of 16x16, decoder only", Plan(((1.0, group(fine, "output")),), own)


def attention_variants(config) -> Iterator[tuple[str, Predictor]]:
    yield f"as it is: t = {T}, 16x16 positions, not spread", Undecoded()
    for timestep in (0, 50, 200, 400):
        yield f"t = {timestep}", Undecoded(timestep=timestep)
    yield "mean of 4 noises", Undecoded(samples=4)
    for name, chosen in layer_sets(config):
        yield name, Undecoded(capture=partial(through, chosen))
    for spread in ("stuff", "objects"):
        yield f"spread as {spread}", Undecoded(spread=spread)
    yield "words against their own start, end and padding", alone
    yield "under the caption", Undecoded(capture=captioned)
    yield "captured while drawing anew", Undecoded(capture=redrawn)


def noise_variants() -> Iterator[tuple[str, Predictor]]:
    yield f"as it is: t = {METHODS['noise'].timestep}, mean of {METHODS['noise'].samples} noises", Undecoded("noise")
    for timestep in (200, 300, 500, 600, 700):
        yield f"t = {timestep}", Undecoded("noise", timestep=timestep)
    for samples in (1, 2):
        yield f"{samples} noise{'s' * (samples > 1)}", Undecoded("noise", samples=samples)


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

    def row(self, name: str, answers: list[Answers]) -> str:
        """mIoU, IoU_FG, AP and IoU at 0.5, in percent."""
        scores = self.scores(answers)
        values = (scores.miou, scores.iou_fg, scores.ap, scores.iou_at_default)
        return f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |"

    def reaches(self, name: str, answers: list[Answers]) -> str:
        """mIoU by the reach of the edge step."""
        pairs = list(zip(self.batches, answers, strict=True))
        refined = ([replace(part, reach=reach).refined(batch) for batch, part in pairs] for reach in REACHES)
        return f"| {name} | " + " | ".join(f"{100 * self.scores(r).miou:.1f}" for r in refined) + " |"


def show(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main(pack: Path, count: int) -> None:
    backbone = load_backbone("mini")
    dataset = [e for e in validation(backbone, pack, count) if e.mask.any()]
    bench = Bench(backbone, list(batches(dataset, backbone)))
    head = ("mIoU | IoU_FG | AP | IoU at 0.5 |", "|---|---|---|---|---|")
    show(f"{count} scenes, {len(dataset)} phrases", "", f"| attention | {head[0]}", head[1])
    for name, predictor in attention_variants(backbone.unet_config):
        show(bench.row(name, bench.answers(predictor)))
    show("", f"| noise | {head[0]}", head[1])
    for name, predictor in noise_variants():
        show(bench.row(name, bench.answers(predictor)))
    show("", "| mIoU by reach | " + " | ".join(f"{reach:.3f}" for reach in REACHES) + " |", "|---" * 7 + "|")
    for method in ("attention", "noise"):
        show(bench.reaches(method, bench.answers(Undecoded(method))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
