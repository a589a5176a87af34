"""Masks from the attention of a diffusion transformer: no decoder, one cut-short pass for any number of phrases.

The backbone is run here. What its attention says of where a phrase is, `joint_maps.py` computes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbones.joint import BlockAttention, Noised
from .attention import check_spread, pure_noise
from .attention_maps import masks_of, peak
from .base import BaseSegmenter, MaskPrediction, enlarge
from .joint_maps import evidence, keep_alike
from .sizing import padded

BACKGROUND = ("background", "floor", "sky", "wall")  # what phrases compete with; one that is asked for is left out


class JointAttentionSegmenter(BaseSegmenter):
    """Soft masks of phrases, and their presence, from the attention of a backbone's transformer.

    `blocks` says which are read, `read` whether "attention", "outputs" or "both" tell (defaults: those of the family),
    `background` with which words phrases compete. `spread` "none" leaves masks as they are read; otherwise what does
    not look as the strongest part of a mask is taken from it.
    """

    samples = 1
    tells_presence = True
    needs = "joint"

    def __init__(
        self,
        backbone,
        *,
        spread: str = "auto",
        samples: int | None = None,
        progress: Callable[[float], None] | None = None,
        blocks: Sequence[int] = (),
        background: Sequence[str] = BACKGROUND,
        read: str | None = None,
    ):
        super().__init__(backbone, samples, progress)
        self.spread, self.blocks = check_spread(spread), tuple(blocks)
        self.background, self.read = tuple(background), read or backbone.family.read
        self.timestep = backbone.family.timestep

    @torch.inference_mode()
    def predict_passes(
        self,
        z: Tensor,
        phrases: Sequence[str],
        timestep: int,
        seed: int,
        caption: str,
        captured: Noised | None,
        done: float,
    ) -> MaskPrediction:
        size, seeds = tuple(z.shape[-2:]), list(range(seed, seed + self.samples))
        if captured:
            z, timestep, seeds = captured.z, captured.timestep, [None]
        z = padded(z, self.backbone.patch)
        asked = {phrase.casefold() for phrase in phrases}
        names = [*phrases, *(word for word in self.background if word not in asked)]
        concepts, grid = self.backbone.concepts(names, caption), self.backbone.grid(z)
        passes, passed = 1 + len(z) * len(seeds), 1

        def attend(latents: Tensor, noise_seed: int | None) -> list[BlockAttention]:
            return self.backbone.attend(latents, concepts, self.blocks, timestep=timestep, seed=noise_seed)

        self.progress(done)
        on_noise, masks, presence = attend(pure_noise(z), 0), [], []
        for row in range(len(z)):
            total = 0.0  # [P, N]
            for noise_seed in seeds:
                self.progress(done + (1 - done) * passed / passes)
                passed += 1
                shown = attend(z[row : row + 1], noise_seed)
                total = total + evidence(shown, on_noise, self.read)[0, : len(phrases)] / len(seeds)
            on_grid = total.unflatten(-1, grid)
            presence.append(peak(on_grid).cpu())
            found = masks_of(on_grid)  # [P, rows, columns]
            if self.spread != "none":
                found = keep_alike(found.flatten(1), [block.image[0] for block in shown]).unflatten(-1, grid)
            masks.append(found.cpu())
        self.progress(1.0)
        return enlarge(torch.stack(masks), torch.stack(presence), tuple(z.shape[-2:]), size, self.backbone.stride)
