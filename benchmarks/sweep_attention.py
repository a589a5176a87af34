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
from validation import validation

from ldznet_core import load_host
from ldznet_core.attention import cross_attention
from ldznet_core.mini.decoders import Phrases
from ldznet_core.mini.evaluation import Question, judge
from ldznet_core.mini.predictors import Answers, Asked, Predictor, Undecoded, redrawn
from ldznet_core.queries import Layer, Plan, Queries, layers, plan
from ldznet_core.refine import REACH
from ldznet_core.training_free import SAMPLES, TIMESTEPS, look

T = TIMESTEPS["attention"]
REACHES = (REACH, 1 / 16, 1.5 / 16, 2 / 16, 2.5 / 16, 3 / 16)  # from 1/16 on in positions of the miniature's grid


# ---- what is listened to, in place of one pass under no text over the layers that `plan` chooses ----


def through(chosen: Plan, host, data: Phrases, scenes: list[int]) -> Queries:
    """One pass over other layers."""
    return look(host, data.z[scenes], host.embed([""]), chosen, T, 0)


def captioned(host, data: Phrases, scenes: list[int]) -> Queries:
    """One pass under each scene's caption."""
    z = data.z[scenes]
    return look(host, z, host.embed([data.captions[i] for i in scenes]), plan(host.unet_config, *z.shape[-2:]), T, 0)


@torch.inference_mode()
def alone(host, data: Phrases, asked: Asked) -> Answers:
    """What a phrase's words win from its own start, end and padding, as in the model's own passes, stretched from
    minimum to maximum."""
    empty, masks, size = host.embed([""]), [], data.images.shape[1:3]
    for scene, phrase in asked:
        z, text = data.z[scene : scene + 1], host.embed([phrase])
        queries = look(host, z, empty, plan(host.unet_config, *z.shape[-2:]), T, 0)
        keys = host.project(text.context, queries.plan.keys(host.transformer))
        heads, words = host.unet_config.num_heads, slice(1, 1 + text.lengths[0])
        won = sum(cross_attention(q, k, heads)[..., words].sum(-1) for q, k in zip(queries.cross, keys, strict=True))
        won = (won - won.min()) / (won.max() - won.min())  # [1, 1, n]: the miniature is read on one grid only
        small = won.unflatten(-1, queries.shape(queries.plan.layers[0].level))
        masks.append(torch.nn.functional.interpolate(small, size, mode="bilinear")[0])
    return Answers(torch.cat(masks), None, REACH)


# ---- the tables ----


def layer_sets(config) -> Iterator[tuple[str, Plan]]:
    """Every level alone (grids of 16, 8 and 4), two together as `plan` would weigh them, and halves of the finest."""
    own = plan(config, 16, 16).own

    def group(level: int, kind: str = "") -> tuple[Layer, ...]:
        return tuple(layer for layer in layers(config, level) if layer.block.startswith(kind))

    for level in sorted(config.attention_levels)[1:]:
        yield f"cross-attention of {16 // 2**level}x{16 // 2**level} positions", Plan(((1.0, group(level)),), own)
    yield "of 8x8 (0.7) and 16x16 (0.3)", Plan(((0.7, group(1)), (0.3, group(0))), own)
    yield "of 8x8 (0.3) and 16x16 (0.7)", Plan(((0.3, group(1)), (0.7, group(0))), own)
    yield "of 16x16, encoder only", Plan(((1.0, group(0, "input")),), own)
    yield "of 16x16, decoder only", Plan(((1.0, group(0, "output")),), own)


def attention_variants(config) -> Iterator[tuple[str, Predictor]]:
    yield f"as it is: t = {T}, 16x16 positions, not spread", Undecoded()
    for timestep in (0, 50, 200, 400):
        yield f"t = {timestep}", Undecoded(timestep=timestep)
    yield "mean of 4 noises", Undecoded(samples=4)
    for name, chosen in layer_sets(config):
        yield name, Undecoded(listen=partial(through, chosen))
    for spread in ("stuff", "objects"):
        yield f"spread as {spread}", Undecoded(spread=spread)
    yield "words against their own start, end and padding", alone
    yield "under the caption", Undecoded(listen=captioned)
    yield "captured while drawing anew", Undecoded(listen=redrawn)


def noise_variants() -> Iterator[tuple[str, Predictor]]:
    yield f"as it is: t = {TIMESTEPS['noise']}, mean of {SAMPLES['noise']} noises", Undecoded("noise")
    for timestep in (200, 300, 500, 600, 700):
        yield f"t = {timestep}", Undecoded("noise", timestep=timestep)
    for samples in (1, 2):
        yield f"{samples} noise{'s' * (samples > 1)}", Undecoded("noise", samples=samples)


@dataclass(frozen=True)
class Bench:
    """The scenes and what is asked of them."""

    host: object
    data: Phrases
    asked: list[Question]

    @property
    def pairs(self) -> Asked:
        return [(q.scene, q.noun) for q in self.asked]

    def answers(self, predictor: Predictor) -> Answers:
        return predictor(self.host, self.data, self.pairs)

    def row(self, name: str, answers: Answers) -> str:
        """mIoU, IoU_FG, AP and IoU at 0.5, in percent."""
        scores = judge(answers, self.asked).scores
        values = (scores.miou, scores.iou_fg, scores.ap, scores.iou_at_default)
        return f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |"

    def reaches(self, name: str, answers: Answers) -> str:
        """mIoU by the reach of the edge step."""
        refined = (replace(answers, reach=reach).refined(self.data, self.pairs) for reach in REACHES)
        return f"| {name} | " + " | ".join(f"{100 * judge(r, self.asked).scores.miou:.1f}" for r in refined) + " |"


def show(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def main(pack: Path, count: int) -> None:
    host = load_host("mini")
    bench = Bench(host, *validation(host, pack, count))
    head = ("mIoU | IoU_FG | AP | IoU at 0.5 |", "|---|---|---|---|---|")
    show(f"{count} scenes, {len(bench.asked)} phrases", "", f"| attention | {head[0]}", head[1])
    for name, predictor in attention_variants(host.unet_config):
        show(bench.row(name, bench.answers(predictor)))
    show("", f"| noise | {head[0]}", head[1])
    for name, predictor in noise_variants():
        show(bench.row(name, bench.answers(predictor)))
    show("", "| mIoU by reach | " + " | ".join(f"{reach:.3f}" for reach in REACHES) + " |", "|---" * 7 + "|")
    for method in ("attention", "noise"):
        show(bench.reaches(method, bench.answers(Undecoded(method))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
