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
import torch.nn.functional as F
from torch import Tensor

from ..ldm import LatentDiffusion
from ..networks.decoder import DecoderConfig, MaskDecoder
from ..weights import DecoderInfo, write_decoder
from .bank import Recipe, bank
from .denoiser import encode_all
from .loop import Plan, compile_on_gpu, half_precision, train
from .vae import to_network
from .world import Scene

log = logging.getLogger(__name__)
HEAD_CHANNELS = 8  # 16x16 latents and one channel cannot place an edge within eight pixels
ABSENT = 0.12  # share of phrases that name something that is not there
FEATURE_TEXTS = {"phrase": 0.5, "caption": 0.3, "empty": 0.2}
TIMESTEPS = (300, 500)
TRAINING_COUNTS = (0.2, 0.45, 0.35)


@dataclass(frozen=True)
class Phrases:
    """Scenes as a decoder is trained and judged on them. `masks[i]` lists (phrase, packed mask) of scene i."""

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


@dataclass(frozen=True)
class Sample:
    scene: int
    phrase: str
    mask: np.ndarray  # bool [S, S]


def draw(data: Phrases, nouns: tuple[str, ...], rng: np.random.Generator) -> Sample:
    """A scene and one phrase for it: present (each phrase of the scene alike) or, at times, absent."""
    i = int(rng.integers(len(data.masks)))
    missing = [n for n in nouns if n not in data.present[i]]
    if missing and rng.random() < ABSENT:
        size = data.images.shape[1]
        return Sample(i, missing[rng.integers(len(missing))], np.zeros((size, size), bool))
    phrase, packed = data.masks[i][rng.integers(len(data.masks[i]))]
    return Sample(i, phrase, data.mask(packed))


class Contexts:
    """Text contexts [B, 77, D] by string, each computed once."""

    def __init__(self, model: LatentDiffusion, device: str):
        self.model, self.device, self.known = model, device, {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        new = [t for t in dict.fromkeys(texts) if t not in self.known]
        if new:
            tokens = torch.tensor([self.model.tokenizer.encode(t) for t in new], device=self.device)
            self.known |= dict(zip(new, self.model.text(tokens).half(), strict=True))
        return torch.stack([self.known[t] for t in texts]).float()


@torch.no_grad()
def host_features(model: LatentDiffusion, z: Tensor, context: Tensor, taps, timesteps: Tensor) -> list[Tensor]:
    """The denoiser's maps of freshly noised latents."""
    z_t = model.schedule.add_noise(z, torch.randn_like(z), timesteps)
    return model.unet.extract(z_t, timesteps, context, taps)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy (the paper's) plus half a soft Dice, which keeps small things from being ignored."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target)
    p = logits.sigmoid()
    overlap = 2 * (p * target).sum((1, 2, 3)) + 1
    dice = 1 - overlap / (p.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)
    return cross_entropy + 0.5 * dice.mean()


def train_decoder(
    kind: str, seed: int, model: LatentDiffusion, data: Phrases, path: Path, plan: Plan, batch: int
) -> None:
    """Train one decoder and write it to `path`; its checkpoint lies beside, in a folder named alike."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, plan.resume))  # a resumed run goes on to other samples
    device, size = plan.device, data.images.shape[1]
    nouns = tuple(model.about["nouns"])
    decoder = MaskDecoder(DecoderConfig(kind, model.unet.config, grid=size // 8, head_channels=HEAD_CHANNELS))
    decoder.init_from(model.unet).to(device).train().requires_grad_(True)
    compile_on_gpu(device, decoder)
    contexts = Contexts(model, device)
    texts, shares = list(FEATURE_TEXTS), list(FEATURE_TEXTS.values())

    def loss(progress: float) -> Tensor:
        samples = [draw(data, nouns, rng) for _ in range(batch)]
        index = torch.tensor([s.scene for s in samples])
        target = torch.from_numpy(np.stack([s.mask for s in samples])).to(device).float()[:, None]
        phrases = [f"a {s.phrase}" if rng.random() < 0.5 else s.phrase for s in samples]
        context = contexts(phrases)
        z = data.z[index.to(data.z.device)].to(device)
        features = None
        if kind == "ldznet":
            captions = [data.captions[s.scene] for s in samples]
            conditions = {"phrase": phrases, "caption": captions, "empty": [""] * batch}
            said = contexts([conditions[t][i] for i, t in enumerate(rng.choice(texts, batch, p=shares))])
            timesteps = torch.randint(*TIMESTEPS, (batch,), device=device)
        with half_precision(device):
            if kind == "ldznet":
                features = host_features(model, z, said, decoder.taps, timesteps)
            given = to_network(data.images[index.numpy()], device) if kind == "rgbnet" else z
            logits = decoder(given, context, features)
        return mask_loss(logits.float(), target)

    def report(averaged: dict[str, Tensor], trained: dict) -> None:
        decoder.load_state_dict(averaged)
        samples = trained["steps"] * batch
        training = {**trained, "seed": seed, "samples": samples, "data": "miniature world, train split"}
        info = DecoderInfo("mini", model.schedule.prediction, TIMESTEPS, size * size, ("{}", "a {}"), training)
        write_decoder(decoder, info, path)
        log.info("wrote %s", path)

    train(decoder, loss, plan, path.with_suffix(""), report)


def blend(first: MaskDecoder, last: MaskDecoder, share: float) -> MaskDecoder:
    """A decoder `share` of the way from `first` to `last`, which was trained on from it.

    Long training learns its own sprites by heart; weights on the way there know others better and lose little (Wortsman
    et al., Robust fine-tuning of zero-shot models, CVPR 2022).
    """
    start, blended = first.state_dict(), copy.deepcopy(last)
    blended.load_state_dict({name: start[name].lerp(end, share) for name, end in last.state_dict().items()})
    return blended


def training_data(pack: Path, model: LatentDiffusion, scenes: int, device: str = "cpu") -> Phrases:
    recipe = Recipe(model.about["size"], len(model.about["nouns"]), counts=TRAINING_COUNTS)
    return Phrases.of(bank(pack, recipe, scenes, seed=77), model, device)
