"""Masks from noise estimates: a phrase is where it changes what the model takes for the clean latent.

This needs nothing but the model's estimates, so it works where attention cannot be read. It takes a pass for every
seven phrases and each sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention_maps import masks_of, noise_difference
from .base import GRID, ROWS_AT_ONCE, BaseSegmenter, MaskPrediction, enlarge
from .sizing import padded


class NoiseSegmenter(BaseSegmenter):
    """Soft masks of phrases from the difference that each makes to the noise estimate (paper, Figure 1). It has no
    use for a caption or for what was captured while sampling."""

    timestep = 400  # of the paper's Figure 1
    samples = 4
    needs = "denoise"

    @torch.inference_mode()
    def predict_passes(
        self, z: Tensor, phrases: Sequence[str], timestep: int, seed: int, caption: str, captured: None, done: float
    ) -> MaskPrediction:
        size = tuple(z.shape[-2:])
        z = padded(z, GRID // 8)
        # The empty text is in every batch: estimates of batches of other sizes differ by their rounding.
        starts = range(0, len(phrases), ROWS_AT_ONCE - 1)
        groups = [self.backbone.embed(["", *phrases[i : i + ROWS_AT_ONCE - 1]]) for i in starts]
        passes, passed, masks = len(z) * self.samples * len(groups), 0, []
        for image in z:  # [C, h, w]
            total = 0.0
            for noise_seed in range(seed, seed + self.samples):
                parts = []
                for group in groups:
                    self.progress(done + (1 - done) * passed / passes)
                    passed += 1
                    rows = image.expand(len(group), -1, -1, -1)
                    clean = self.backbone.denoise(rows, group, timestep=timestep, seed=noise_seed)
                    parts.append(noise_difference(clean[1:], clean[:1]))
                total = total + torch.cat(parts)  # [P, h, w]
            masks.append(masks_of(total - total.flatten(1).median(1).values[:, None, None]).cpu())
        self.progress(1.0)
        return enlarge(torch.stack(masks), None, tuple(z.shape[-2:]), size, self.backbone.stride)
