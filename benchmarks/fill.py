"""Attention masks of a UNet, spread or filled: `python benchmarks/fill.py mini-build/world.zip [scenes]`.

`spread` runs masks along self-attention. The others compare outputs of self-attention with those where a mask is
strongest: a fill marks all that looks like it, `keep_alike` (`segment/joint_maps.py`) only what was marked before, and
smoothing takes means over what looks alike. Validation scenes of the miniature's world. Prints a Markdown table, mIoU
before and after the edge step.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sweep_attention import Bench, show
from torch import Tensor
from validation import validation

from ldznet_core import load_backbone
from ldznet_core.backbones.families.unet import layers
from ldznet_core.evaluation.batches import Batch, batches
from ldznet_core.evaluation.predictors import Answers, Undecoded
from ldznet_core.segment import attention_maps, joint_maps
from ldznet_core.segment.attention import AttentionSegmenter
from ldznet_core.segment.base import enlarge

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
SHARPNESSES = (2.0, 5.0, 10.0, 20.0)


class Unspread(AttentionSegmenter):
    """Keeps what it would spread."""

    def spread_out(self, masks: Tensor, queries) -> Tensor:
        self.masks, self.queries = masks, queries
        return masks


def own_outputs(backbone, z: Tensor, part: str) -> Tensor:
    """Outputs [N, D] of self-attention on the finest grid, in the `part` of the UNet, of unit length."""
    modules = {
        layer.block: layer.attention(backbone.transformer, "attn1")
        for layer in layers(backbone.unet_config, 0)
        if layer.block.startswith(part)
    }
    outputs = backbone.observe(z, backbone.embed([""]), modules, timestep=AttentionSegmenter.timestep)
    return F.normalize(torch.cat([joint_maps.features(output[0]) for output in outputs.values()], dim=-1), dim=-1)


def masks_of(bench: Bench, part: str = "output") -> list[list[tuple[Tensor, Tensor]]]:
    """For each batch, for each of its pictures, masks [P, h, w] as attention tells them and features [N, D]."""
    found = []
    for batch in bench.batches:
        segmenter, pictures = Unspread(bench.backbone), []
        for row, picture in enumerate(batch.pictures):
            z = batch.z[row : row + 1]
            segmenter.predict_latent(z, [example.phrase for example in picture])
            pictures.append((segmenter.masks, own_outputs(bench.backbone, z, part)))
        found.append(pictures)
    return found


def filled(change: Callable[[Tensor, Tensor], Tensor], batch: Batch, pictures: list) -> Answers:
    masks, reach = [], 0.0
    for (mask, features), row in zip(pictures, batch.z, strict=True):
        size = tuple(row.shape[-2:])
        changed = change(mask.flatten(1), features).unflatten(-1, mask.shape[-2:])
        prediction = enlarge(changed[None], None, size, size)
        masks.append(prediction.masks[0])
        reach = prediction.reach
    return Answers(torch.cat(masks), None, reach)


def keep_alike(masks: Tensor, looks: Tensor) -> Tensor:
    return joint_maps.keep_alike(masks, [looks])


def fill(masks: Tensor, looks: Tensor) -> Tensor:
    """How alike every position is to the strongest ones, whatever the mask says there."""
    strongest, places = masks.topk(max(1, round(joint_maps.SEEDS * masks.shape[-1])), dim=-1)
    seed = F.normalize((looks[places] * strongest[..., None]).sum(1), dim=-1)
    return attention_maps.masks_of((seed @ looks.T).clamp(min=0)[:, None])[:, 0]


def smooth(sharpness: float, masks: Tensor, looks: Tensor) -> Tensor:
    """Means over all positions, weighted by how alike they look."""
    weights = F.softmax(sharpness * looks @ looks.T, dim=-1)
    return attention_maps.masks_of((masks @ weights.T)[:, None])[:, 0]


def main(pack: Path, count: int) -> None:
    backbone = load_backbone("mini")
    dataset = [e for e in validation(backbone, pack, count) if e.mask.any()]
    bench = Bench(backbone, list(batches(dataset, backbone)))
    show(f"{count} scenes, {len(dataset)} phrases", "", "| masks | mIoU | refined |", "|---|---|---|")

    def row(name: str, answers: list[Answers]) -> None:
        answers = [replace(one, presence=None) for one in answers]
        refined = [one.refined(batch) for one, batch in zip(answers, bench.batches, strict=True)]
        values = (bench.scores(part).miou for part in (answers, refined))
        show(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")

    for spread in ("none", "stuff", "objects"):
        row(f"spread: {spread}", bench.answers(Undecoded(spread=spread)))
    for part, of_part in (("input", "of the encoder"), ("output", "of the decoder"), ("", "of all layers")):
        pictures = masks_of(bench, part)

        def variant(name: str, change: Callable, pictures: list = pictures, of_part: str = of_part) -> None:
            answers = [filled(change, batch, part) for batch, part in zip(bench.batches, pictures, strict=True)]
            row(f"{name}, outputs {of_part}", answers)

        variant("keep alike", keep_alike)
        if part == "output":
            variant("fill", fill)
            for sharpness in (10, 20, 40):
                variant(f"smooth, sharpness {sharpness}", partial(smooth, sharpness))
            chosen = joint_maps.SEEDS
            for share in (0.004, 0.05, 0.1):
                joint_maps.SEEDS = share
                variant(f"keep alike, strongest {share}", keep_alike)
            joint_maps.SEEDS = chosen


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150)
