"""Step `decoders`: RGBNet, ZNet and LD-ZNet on the miniature, from the same start, data and number of samples.

Most scenes hold two or three things, so that only the words can tell which is meant; some phrases name what
is not there, so that an empty mask is an answer.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.torch_ldm import LDMBackbone
from ..checkpoints.ldm import LatentDiffusion
from ..data.base import Example
from ..decoders.files import DecoderInfo
from ..decoders.unet import DecoderConfig, MaskDecoder
from ..training.decoder import train_decoder
from ..training.loop import Plan
from ..training.task import Settings
from .bank import Recipe, bank
from .denoiser import encode_all
from .styles import Looks
from .world import Scene

log = logging.getLogger(__name__)
HEAD_CHANNELS = 8  # 16x16 latents and one channel cannot place an edge within eight pixels
ABSENT = 0.12  # share of phrases that name something that is not there
TIMESTEPS = (300, 500)
FEATURE_TEXTS = {"phrase": 0.5, "caption": 0.3, "empty": 0.2}  # shares of examples whose features are read under each
TRAINING_COUNTS = (0.2, 0.45, 0.35)
LOOKS = Looks(things=0.5, pictures=0.4)


@dataclass(frozen=True)
class Phrases:
    """Scenes as a decoder is trained on them. `masks[i]` lists (phrase, packed mask) of scene i."""

    images: np.ndarray  # uint8 [N, S, S, 3]
    z: Tensor  # [N, 4, S/8, S/8], scaled
    captions: list[str]
    masks: list[list[tuple[str, np.ndarray]]]
    present: list[frozenset[str]]  # nouns

    @classmethod
    def of(cls, scenes: list[Scene], model: LatentDiffusion, device: str = "cpu") -> "Phrases":
        images = np.stack([s.image for s in scenes])
        z = encode_all(model.vae, images, device) * model.vae.SCALE
        masks = [[(text, np.packbits(mask)) for text, mask in s.phrases()] for s in scenes]
        present = [frozenset(t.sprite.noun for t in s.things) for s in scenes]
        return cls(images, z, [s.caption for s in scenes], masks, present)

    def mask(self, packed: np.ndarray) -> np.ndarray:
        size = self.images.shape[1]
        return np.unpackbits(packed, count=size * size).reshape(size, size).astype(bool)


VIEWS = 64  # examples a scene: enough for each of its phrases, and for some that it lacks


@dataclass(frozen=True)
class SceneExamples:
    """Scenes as a data set: `VIEWS` examples a scene, each of a phrase that is there (each phrase of the scene alike)
    or, at times, of a noun that is not."""

    data: Phrases
    nouns: tuple[str, ...]
    seed: int = 0

    def __len__(self) -> int:
        return VIEWS * len(self.data.masks)

    def __getitem__(self, index: int) -> Example:
        data, scene = self.data, index % len(self.data.masks)
        rng = np.random.default_rng((self.seed, index))
        missing = [n for n in self.nouns if n not in data.present[scene]]
        if missing and rng.random() < ABSENT:
            phrase, mask = missing[rng.integers(len(missing))], np.zeros(data.images.shape[1:3], bool)
        else:
            phrase, packed = data.masks[scene][rng.integers(len(data.masks[scene]))]
            mask = data.mask(packed)
        return Example(phrase, mask, data.images[scene], data.z[scene], caption=data.captions[scene])


def train_kind(
    kind: str, seed: int, backbone: LDMBackbone, data: Phrases, path: Path, plan: Plan, batch: int,
    start: MaskDecoder | None = None,
) -> None:
    """Train a decoder of a kind, from the miniature's own UNet or from `start` on, and write it to `path`."""
    model, size = backbone.model, data.images.shape[1]
    torch.manual_seed(seed)
    decoder = start
    if decoder is None:
        config = DecoderConfig(kind, model.unet.config, grid=size // 8, head_channels=HEAD_CHANNELS)
        decoder = MaskDecoder(config).init_from(model.unet)
    training = {"data": "miniature world, train split, with looks"}
    info = DecoderInfo("mini", model.schedule.prediction, pixels=size * size, training=training)
    settings = Settings(batch, batch, ("{}", "a {}"), FEATURE_TEXTS, TIMESTEPS)
    dataset = SceneExamples(data, tuple(model.about["nouns"]), seed)
    train_decoder(decoder, LDMBackbone(model, plan.device), dataset, path, plan, info, settings, seed)


def blend(first: nn.Module, last: nn.Module, share: float) -> nn.Module:
    """A decoder `share` of the way from `first` to `last`, which was trained on from it.

    Long training learns its own sprites by heart; weights on the way there know others better and lose little (Wortsman
    et al., Robust fine-tuning of zero-shot models, CVPR 2022).
    """
    start, blended = first.state_dict(), copy.deepcopy(last)
    blended.load_state_dict({name: start[name].lerp(end, share) for name, end in last.state_dict().items()})
    return blended


def training_data(pack: Path, model: LatentDiffusion, scenes: int, device: str = "cpu") -> Phrases:
    """Scenes whose things and pictures have looks of their own: looks are what makes a decoder know things in styles
    that it never saw."""
    recipe = Recipe(model.about["size"], len(model.about["nouns"]), counts=TRAINING_COUNTS, looks=LOOKS)
    return Phrases.of(bank(pack, recipe, scenes, seed=78), model, device)
