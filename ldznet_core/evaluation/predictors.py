"""What is evaluated: decoders, and methods that need none, all asked for masks of examples in one way."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import TorchBackbone
from ..backbones.queries import Queries
from ..decoders.base import Decoder
from ..decoders.files import load_decoder
from ..decoders.registry import DECODERS
from ..errors import InputError
from ..networks.precision import half_precision
from ..segment.base import PRESENT, MaskPrediction
from ..segment.decoder import Segmenter, best_condition
from ..segment.examples import image_of
from ..segment.guided_filter import REACH, refine
from ..segment.methods import decoder_free
from .batches import Batch


@dataclass(frozen=True)
class Answers:
    """Soft masks in 0..1 of N examples: [N, H, W], or a list of N masks [h, w] of any sizes. `presence` [N] says how
    sure it is that each phrase is there, None where the predictor cannot tell; below `least` a phrase counts as absent.
    `reach` is how far an edge may be off, for `refine`; 0 where none is. Raises InputError where a value is not finite.
    """

    masks: Tensor | Sequence[Tensor]
    presence: Tensor | None = None
    reach: float = REACH
    least: float = PRESENT

    def __post_init__(self):
        for name, values in (("mask", self.masks), ("presence", self.presence)):
            if values is not None and not all(value.isfinite().all() for value in values):
                raise InputError(f"a predictor gave a {name} that is not finite (NaN or infinity): check its weights")

    @property
    def present(self) -> list[bool]:
        """For each example whether it counts as there."""
        return [True] * len(self.masks) if self.presence is None else (self.presence >= self.least).tolist()

    def refined(self, batch: Batch) -> "Answers":
        """The same masks at the size of the pictures in the data set, with edges that follow those. Raises InputError
        where an example brings no image."""
        if not self.reach:
            return self
        originals, masks = (example for picture in batch.originals for example in picture), []
        for mask, example in zip(self.masks, originals, strict=True):
            image = torch.from_numpy(image_of(example)) / 255
            masks.append(refine(mask[None], image, self.reach)[0])
        return replace(self, masks=masks)


Predictor = Callable[[TorchBackbone | None, Batch], Answers]


@dataclass(frozen=True)
class Method:
    """A line of the table. `text` is what feature maps are extracted under; `predictors` differ in their training
    seed."""

    name: str
    text: str
    predictors: tuple[Predictor, ...]


def gathered(predictions: Sequence[MaskPrediction]) -> Answers:
    """The answers to a batch, from the predictions of its pictures."""
    presence = [p.presence[0] for p in predictions if p.presence is not None]
    masks = torch.cat([p.masks[0] for p in predictions])
    return Answers(masks, torch.cat(presence) if presence else None, predictions[0].reach)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoder's masks, as `Segmenter` makes them at t = 400 with the default noise; in bfloat16 where the processor
    computes in it. `text` conditions the features; None leaves the choice to `Segmenter`."""

    decoder: Decoder
    text: str | None = "phrase"

    def __call__(self, backbone: TorchBackbone, batch: Batch) -> Answers:
        segmenter = Segmenter(backbone, self.decoder, self.text)
        with half_precision(backbone.device):
            return gathered([self.predict(segmenter, batch, row) for row in range(len(batch.pictures))])

    def predict(self, segmenter: Segmenter, batch: Batch, row: int) -> MaskPrediction:
        picture = batch.pictures[row]
        phrases = [example.phrase for example in picture]
        if self.decoder.reads == "pixels":
            image = torch.from_numpy(image_of(picture[0]))[None] / 255
            return segmenter.predict(image, phrases, caption=picture[0].caption)
        return segmenter.predict_latent(batch.z[row : row + 1], phrases, caption=picture[0].caption)


@dataclass(frozen=True)
class Undecoded:
    """Masks of a method that needs no decoder, for all phrases of a picture at once.

    `capture(backbone, z, captions)` gives the queries of K pictures, where they are not to come from one pass over the
    clean latent.
    """

    method: str = "attention"
    timestep: int | None = None
    spread: str = "auto"
    samples: int | None = None
    capture: Callable[[TorchBackbone, Tensor, list[str]], Queries] | None = None

    def __call__(self, backbone: TorchBackbone, batch: Batch) -> Answers:
        segmenter = decoder_free(backbone, self.method, spread=self.spread, samples=self.samples)
        captured = self.capture and self.capture(backbone, batch.z, batch.captions)
        return gathered([
            segmenter.predict_latent(
                batch.z[row : row + 1],
                [example.phrase for example in picture],
                timestep=self.timestep,
                captured=captured and captured.row(row),
            )
            for row, picture in enumerate(batch.pictures)
        ])


def everything(backbone: TorchBackbone | None, batch: Batch) -> Answers:
    """The baseline that ignores the words: for every phrase it marks all that the examples of the picture name."""
    masks = []
    for picture in batch.originals:
        masks += [torch.from_numpy(np.logical_or.reduce([e.mask for e in picture])).float()] * len(picture)
    return Answers(masks, reach=0)


FREE = {  # of a decoder, by the name that the command line knows
    "attention": (Method("attention", "empty", (Undecoded(),)),),
    "noise": (Method("noise", "phrase", (Undecoded("noise"),)),),
}


def by_kind(
    decoders: Iterable[Decoder | Path], kinds: Collection[str] = tuple(DECODERS), texts: Sequence[str] = ()
) -> list[Method]:
    """Decoders, or files of them, as methods, weakest input first; those of one kind are seeds of it.

    `texts` are the conditionings under which features are extracted, a method each. By default that is the phrase, as
    in the paper, where the decoder was trained so.
    """
    loaded = [load_decoder(one) if isinstance(one, (str, Path)) else one for one in decoders]
    groups = {kind: [d for d in loaded if d.kind == kind] for kind in reversed(DECODERS) if kind in kinds}
    return [
        Method(kind, text if seeds[0].taps else "", tuple(Decoded(d, text) for d in seeds))
        for kind, seeds in groups.items() if seeds
        for text in (texts if texts and seeds[0].taps else (conditioning(seeds[0]),))
    ]


def conditioning(decoder: Decoder) -> str:
    return "phrase" if "phrase" in decoder.conditions else best_condition(decoder)
