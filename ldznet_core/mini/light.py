"""Step `light`: light decoders on the miniature, from the scenes that the others are trained on.

Phrases of a scene share one pass of the UNet; a fifth of them name what other scenes show.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..backbones.torch_ldm import LDMBackbone
from ..checkpoints.ldm import LatentDiffusion
from ..data.base import Example
from ..decoders.base import DecoderInfo
from ..decoders.light import LightDecoder, light_config
from ..training.decoder import train_decoder
from ..training.loop import Plan
from ..training.task import Settings
from .decoders import Phrases

WIDTH = 48
TIMESTEPS = (0, 300)
SETTINGS = Settings(
    batch=36, at_once=36, templates=("{}", "a {}"), conditions={"empty": 0.7, "caption": 0.3}, timesteps=TIMESTEPS,
    absent=0.3, phrases=3,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ScenePhrases:
    """Scenes as a data set: an example for each phrase of each scene, those of a scene in a row."""

    data: Phrases

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Scene and phrase of each example."""
        return [(scene, i) for scene, phrases in enumerate(self.data.masks) for i in range(len(phrases))]

    def __len__(self) -> int:
        return sum(map(len, self.data.masks))

    def __getitem__(self, index: int) -> Example:
        scene, place = self.places[index]
        phrase, packed = self.data.masks[scene][place]
        caption, picture = self.data.captions[scene], str(scene)
        return Example(phrase, self.data.mask(packed), latent=self.data.z[scene], caption=caption, picture=picture)


def train_light(
    seed: int, backbone: LDMBackbone, data: Phrases, path: Path, plan: Plan, start: LightDecoder | None = None
) -> None:
    """Train a light decoder, a new one or `start`, on a frozen miniature and write it to `path`."""
    model, size = backbone.model, data.images.shape[1]
    torch.manual_seed(seed)
    decoder = start or LightDecoder(light_config(model.unet.config, size, WIDTH))
    backbone = LDMBackbone(model, plan.device)
    train_decoder(decoder, backbone, ScenePhrases(data), path, plan, info(model), SETTINGS, seed)


def info(model: LatentDiffusion) -> DecoderInfo:
    """What the file of a light decoder says of itself before it is trained."""
    training = {"data": "miniature world, train split, with looks"}
    return DecoderInfo("mini", model.schedule.prediction, pixels=model.about["size"] ** 2, training=training)

