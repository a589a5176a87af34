"""What a user does with a loaded model: sample with stock nodes, look at the result."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldznet_core.imaging.images import read_image, to_tensor

PARK = "docs/pictures/park.png"  # a panda, a pumpkin and a ladybug
SCENE, CHANGE = "a panda and a balloon on a blue background", "a heart on a blue background"


@dataclass
class Studio:
    """MODEL, CLIP, VAE and LDZNET_DECODER of ComfyUI."""

    model: object
    clip: object
    vae: object
    decoder: object

    def prompt(self, text: str) -> list:
        import nodes

        return nodes.CLIPTextEncode().encode(self.clip, text)[0]

    def sample(self, model=None, seed=0, steps=6, cfg=3.0, sampler="euler", scheduler="normal", **options) -> dict:
        """A LATENT from stock KSampler. Options: positive, negative, latent, denoise."""
        import nodes

        positive = options.get("positive") or self.prompt("a pumpkin on a blue background")
        negative = options.get("negative") or self.prompt("")
        latent = options.get("latent") or {"samples": torch.zeros(1, 4, 32, 32)}
        return nodes.KSampler().sample(
            model or self.model, seed, steps, cfg, sampler, scheduler, positive, negative, latent,
            options.get("denoise", 1.0),
        )[0]

    @property
    def unet(self) -> torch.nn.Module:
        return self.model.model.diffusion_model


def hooks(network: torch.nn.Module) -> int:
    """How many hooks of any kind are on a network and all its parts."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)


def park() -> Tensor:
    """The example picture as IMAGE [1, 256, 256, 3]."""
    return to_tensor(read_image(PARK))


def centre(mask: Tensor) -> tuple[float, float]:
    """Row and column of a mask's middle, 0..1."""
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    return float(rows.float().mean() / mask.shape[0]), float(columns.float().mean() / mask.shape[1])


def grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255


def unlike(model, **members):
    """A MODEL of another family: its base is replaced, on a clone."""
    clone = model.clone()
    clone.model = SimpleNamespace(**members)
    clone.get_model_object = lambda name: getattr(clone.model, name)
    return clone


def is_mask(mask, *shape):
    return mask.dtype == torch.float32 and mask.shape == shape and 0 <= mask.min() and mask.max() <= 1
