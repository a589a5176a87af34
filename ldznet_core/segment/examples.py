"""What networks read of a data set's examples, in training and in evaluation: pixels and latents."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..data.base import Example
from ..errors import InputError
from .base import ROWS_AT_ONCE


def image_of(example: Example) -> np.ndarray:
    """uint8 [H, W, 3]. Raises InputError where an example has a latent only."""
    if example.image is None:
        raise InputError(f"the example {example.phrase!r} has no image: give a data set of pictures")
    return example.image


def pixels_of(examples: Sequence[Example]) -> np.ndarray:
    """uint8 [B, H, W, 3] of examples of one size. Raises InputError as `image_of` does."""
    return np.stack([image_of(example) for example in examples])


@torch.no_grad()
def latents_of(backbone: TorchBackbone, examples: Sequence[Example]) -> Tensor:
    """Scaled latents [B, C, H/8, W/8] of examples of one size, in float32 on the backbone's device. Pictures are
    encoded where examples bring no latent. Raises InputError as `image_of` does."""
    latents = [example.latent for example in examples]
    new = [i for i, latent in enumerate(latents) if latent is None]
    for start in range(0, len(new), ROWS_AT_ONCE):
        rows = new[start : start + ROWS_AT_ONCE]
        images = torch.from_numpy(pixels_of([examples[i] for i in rows])).float() / 255
        for i, latent in zip(rows, backbone.encode(images), strict=True):
            latents[i] = latent
    return torch.stack([latent.to(backbone.device, torch.float32) for latent in latents])
