"""What a decoder is trained to do: logits of an example's mask, and their loss.

All that is random about a sample (which example, crop, template, noise) follows from the run's seed, the step and the
sample's position in the batch. So a resumed run, and several processes, see the samples of one run without a stop.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import TorchBackbone
from ..backbones.recording import Text, tapped
from ..data.base import Dataset, Example, draw
from ..data.damage import Damage
from ..data.resize import cropped, resized
from ..decoders.base import Decoder
from ..errors import InputError
from ..imaging.images import to_network
from ..networks.precision import computes_in_bfloat16, stacked
from ..segment.examples import latents_of, pixels_of
from ..segment.features import decoder_features, noised_outputs, phrase_keys
from .cache import LatentCache
from .features import FeatureCache
from .losses import mask_loss
from .processes import ALONE, Processes

KEPT = 1024  # texts whose contexts are kept: 120 MB for SD 1.x
NEIGHBOURS = 20  # examples before and after one that are searched for other phrases of its picture
PRESENCE = 0.3  # share of the loss of presence
TRIES = 20  # draws for an example that can be read, or for a phrase that a picture does not have


@dataclass(frozen=True, eq=False)
class Sample:
    """An example as the networks see it. `text` conditions the features, which are noised to `timestep`. `index` is
    that of the example where its features are read from a cache."""

    example: Example
    phrase: str
    text: str
    timestep: int
    noise: int  # a seed
    index: int | None = None


@dataclass(frozen=True)
class Settings:
    """How samples are made of examples and scored.

    `size` is the side that pictures get, None where all examples have one size already. `conditions` are the texts
    that features are read under, with their shares. `absent` is the share of phrases of other pictures. `at_once`
    samples go through the networks together. `phrases` samples are of one picture under one noise, so that they share
    one pass of the backbone; with more than one, pictures are not cropped and features are read under no phrase.
    """

    batch: int
    at_once: int
    templates: Sequence[str] = ("{}",)
    conditions: Mapping[str, float] = field(default_factory=lambda: {"phrase": 1.0})
    timesteps: tuple[int, int] = (300, 500)
    size: int | None = None
    crop: bool = False
    absent: float = 0.0
    phrases: int = 1
    dice: float = 0.5
    precision: str = "auto"


class Texts:
    """Encoded texts by string; the last `KEPT` are kept, in half precision."""

    def __init__(self, backbone: TorchBackbone):
        self.backbone = backbone
        self.known: OrderedDict[str, tuple[Tensor, Tensor | None, int]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Text:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            encoded = self.backbone.embed(new)
            pooled = [None] * len(new) if encoded.pooled is None else encoded.pooled.half()
            rows = zip(encoded.context.half(), pooled, encoded.lengths or [0] * len(new), strict=True)
            self.known |= dict(zip(new, rows, strict=True))
        contexts, pooled, lengths = zip(*(self.known[text] for text in texts), strict=True)
        for text in dict.fromkeys(texts):
            self.known.move_to_end(text)
        while len(self.known) > KEPT:
            self.known.popitem(last=False)
        pooled = None if pooled[0] is None else stacked(pooled)
        return Text(stacked(contexts), pooled, lengths)


class DecoderTask:
    """Training a decoder on a data set. `damage` counts what could not be read. Examples are read from a cache of the
    data set where there is one, and features where it holds them."""

    def __init__(
        self,
        decoder: Decoder | nn.Module,
        backbone: TorchBackbone,
        dataset: Dataset,
        settings: Settings,
        seed: int = 0,
        processes: Processes = ALONE,
        cache: LatentCache | FeatureCache | None = None,
    ):
        pictures = settings.batch // settings.phrases
        if processes.count > pictures:
            raise InputError(f"a batch of {settings.batch} is too small for {processes.count} processes: raise --batch")
        self.decoder, self.backbone, self.dataset, self.settings = decoder, backbone, dataset, settings
        self.seed, self.texts, self.damage = seed, Texts(backbone), Damage()
        self.examples, self.features = cache or dataset, cache if isinstance(cache, FeatureCache) else None
        self.reader, self.ahead = ThreadPoolExecutor(1), {}
        own, at_once = range(processes.rank, pictures, processes.count), max(1, settings.at_once // settings.phrases)
        # Neighbours in a batch go to different processes, so that all have the same number of parts or one fewer.
        self.chunks = [own[i : i + at_once] for i in range(0, len(own), at_once)]

    @property
    def parts(self) -> int:
        """Passes that make this process's share of a step."""
        return len(self.chunks)

    # ---- samples ----

    def samples(self, step: int, part: int) -> list[Sample]:
        """The samples of a part of a step, with those of the next part being read meanwhile."""
        future = self.ahead.pop((step, part), None)
        samples = future.result() if future else self.read(step, part)
        following = (step, part + 1) if part + 1 < self.parts else (step + 1, 0)
        self.ahead = {following: self.reader.submit(self.read, *following)}
        return samples

    def read(self, step: int, part: int) -> list[Sample]:
        return [sample for position in self.chunks[part] for sample in self.picture(step, position)]

    def picture(self, step: int, position: int) -> list[Sample]:
        """The samples of picture number `position` of a step, which share its noise. Raises InputError where too many
        examples are damaged."""
        s, rng = self.settings, np.random.default_rng((self.seed, step, position))
        index, example = self.drawn(rng)
        there = self.siblings(index, example) if s.phrases > 1 or s.absent else [example]
        order = rng.permutation(len(there)) if s.phrases > 1 else [0]
        chosen = [there[order[i % len(order)]] for i in range(s.phrases)]
        if s.absent:
            own = {one.phrase.lower() for one in there}
            chosen = [self.absent(one, own, rng) if rng.random() < s.absent else one for one in chosen]
        if s.crop and s.phrases == 1 and example.latent is None:
            chosen = [cropped(one, rng) for one in chosen]
        shares = np.array([*s.conditions.values()], float)
        templates = [str(rng.choice(s.templates)) for _ in chosen]
        shared = {
            "condition": str(rng.choice([*s.conditions], p=shares / shares.sum())),
            "timestep": int(rng.integers(*s.timesteps)),
            "noise": int(rng.integers(2**62)),
            "index": index if self.features else None,
        }
        return [self.prepared(one, template, **shared) for one, template in zip(chosen, templates, strict=True)]

    def prepared(
        self, example: Example, template: str, condition: str, timestep: int, noise: int, index: int | None = None
    ) -> Sample:
        if self.settings.size:
            example = resized(example, self.settings.size, self.settings.size)
        phrase = template.format(example.phrase)
        text = {"phrase": phrase, "caption": example.caption, "empty": ""}[condition]
        return Sample(example, phrase, text, timestep, noise, index)

    def drawn(self, rng: np.random.Generator) -> tuple[int, Example]:
        """An example that can be read, and its index."""
        for _ in range(TRIES):
            index = draw(self.dataset, rng, 1)[0]
            if (example := self.damage.read(self.examples, index)) is not None:
                return index, example
        self.damage.check()
        raise InputError(f"{TRIES} examples in a row cannot be read: check the data set")

    def siblings(self, index: int, example: Example) -> list[Example]:
        """The example and its neighbours of the same picture."""
        found = [example]
        if example.picture:
            for way in (-1, 1):
                for other in range(index + way, index + way * (NEIGHBOURS + 1), way):
                    near = self.damage.read(self.examples, other) if 0 <= other < len(self.dataset) else None
                    if near is None or near.picture != example.picture:
                        break
                    found.append(near)
        return found

    def absent(self, example: Example, own: set[str], rng: np.random.Generator) -> Example:
        """The example with a phrase of another picture, not in `own`, and an empty mask; itself where none is found."""
        for _ in range(TRIES):
            phrase = self.drawn(rng)[1].phrase
            if phrase.lower() not in own:
                return replace(example, phrase=phrase, mask=np.zeros_like(example.mask))
        return example

    # ---- logits and loss ----

    def predict(self, samples: Sequence[Sample], each: int = 1) -> tuple[Tensor, Tensor | None]:
        """Logits of masks [N, 1, H, W] and log-odds of presence [N], in float32; None where the decoder tells none.
        `each` samples in a row share a picture and its noise."""
        decoder, backbone, device = self.decoder, self.backbone, self.backbone.device
        phrases, features, timesteps = self.texts([s.phrase for s in samples]), None, None
        samples = samples[::each]  # one a picture
        examples = [s.example for s in samples]
        with self.autocast():
            z = to_network(pixels_of(examples), device) if decoder.reads == "pixels" else latents_of(backbone, examples)
            if decoder.taps and samples[0].index is not None:
                numbers = [s.noise % self.features.draws.count for s in samples]
                cached = self.features.outputs([s.index for s in samples], numbers, device)
                features, timesteps = [cached.tensors[tap] for tap in decoder.taps], cached.timesteps
            elif decoder.taps:
                timesteps = torch.tensor([s.timestep for s in samples], device=device)
                noise = torch.stack(
                    [torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(s.noise)) for s in samples]
                )
                text = self.texts([s.text for s in samples])
                modules = {tap: tapped(backbone.transformer, tap) for tap in decoder.taps}
                outputs = noised_outputs(backbone, z, noise, timesteps, text, modules)
                features = [outputs[tap] for tap in decoder.taps]
            if features is not None:
                keys = phrase_keys(backbone, decoder, phrases, self.texts([""]))
                heads = backbone.unet_config.heads
                features = decoder_features(decoder, features, tuple(z.shape[-2:]), keys, heads)
            logits, presence = decoder.predict(z, phrases.context, features, timesteps)
            return logits.float(), None if presence is None else presence.float()

    def autocast(self) -> torch.autocast:
        device, precision = self.backbone.device, self.settings.precision
        half = computes_in_bfloat16(device) if precision == "auto" else precision == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=half)

    def loss(self, step: int, part: int) -> Tensor:
        """This part's share of the loss of a step."""
        chunk = self.chunks[part]
        samples = self.samples(step, part)
        # For what is random inside a decoder.
        torch.manual_seed(int(np.random.SeedSequence((self.seed, step, chunk[0])).generate_state(1)[0]))
        examples, device = [s.example for s in samples], self.backbone.device
        target = torch.from_numpy(np.stack([e.mask for e in examples])).to(device).float()[:, None]
        ignore = None
        if any(e.ignore is not None for e in examples):
            ignore = torch.from_numpy(np.stack([~e.counts for e in examples])).to(device)[:, None]
        logits, presence = self.predict(samples, self.settings.phrases)
        loss = mask_loss(logits, target, ignore, self.settings.dice)
        if presence is not None:
            loss = loss + PRESENCE * F.binary_cross_entropy_with_logits(presence, target.amax((1, 2, 3)))
        return loss * (len(samples) / self.settings.batch)
