"""What is asked of a picture, and the masks that answer it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real

import torch
from PIL import Image
from torch import Tensor

from ldznet_core.backbones.queries import Queries
from ldznet_core.backbones.recording import Features
from ldznet_core.backbones.step_recorder import Wanted
from ldznet_core.errors import InputError
from ldznet_core.imaging.images import to_tensor
from ldznet_core.imaging.visualize import label_map, overlay
from ldznet_core.segment.base import PRESENT, BaseSegmenter, MaskPrediction
from ldznet_core.segment.decoder import Segmenter
from ldznet_core.segment.guided_filter import refine
from ldznet_core.segment.methods import METHODS, decoder_free
from ldznet_core.segment.phrases import split_phrases
from ldznet_core.segment.postprocess import exclusive, feather, grow
from ldznet_core.segment.sizing import fit

from . import host

MOST_PIXELS = 128  # by which a mask grows, shrinks or is feathered


def number(name: str, value, low: float, high: float) -> float:
    """A number in low..high. Raises InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:  # NaN is in no range
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class Words:
    """What is asked: `phrases`, the `method` (a name of `METHODS` or of a decoder), and what becomes of soft masks.

    A pixel is in a mask above `threshold`. Then the mask grows by `grow` pixels (shrinks, where negative), is turned
    inside out where `invert` says so, and gets an edge `feather` pixels wide. `refine` moves edges to those of the
    picture. Raises InputError for values that make no sense.
    """

    phrases: tuple[str, ...]
    method: str = "attention"
    threshold: float = 0.5
    refine: bool = True
    grow: int = 0
    feather: int = 0
    invert: bool = False

    @classmethod
    def of(cls, text: str | Sequence[str], **values) -> "Words":
        """From a text with one phrase a line, or several in a line with a vertical bar between them."""
        lines = [text] if isinstance(text, str) else list(text) if isinstance(text, list | tuple) else []
        if not all(isinstance(line, str) for line in lines):
            raise InputError(f"phrases must be a text or a list of texts, got {text!r}")
        text = "\n".join(lines)
        return cls(tuple(split_phrases(text)), **values)

    def __post_init__(self):
        number("threshold", self.threshold, 0, 1)
        number("grow", self.grow, -MOST_PIXELS, MOST_PIXELS)
        number("feather", self.feather, 0, MOST_PIXELS)
        if not isinstance(self.method, str):
            raise InputError(f"the method must be a name, got {self.method!r}: choose one of {', '.join(METHODS)}")

    def finished(self, masks: Tensor) -> Tensor:
        """Masks [..., H, W] of 0 and 1 grown, turned inside out and feathered as asked; empty ones stay empty."""
        anything = masks.amax((-2, -1), keepdim=True) > 0
        masks = grow(masks, int(self.grow))
        masks = 1 - masks if self.invert else masks
        return feather(masks, int(self.feather)) * anything


@dataclass(frozen=True)
class Found:
    """The answer for one picture: soft masks [1, P, h, w] and presence, as a method gives them."""

    words: Words
    picture: Image.Image
    prediction: MaskPrediction

    def asked(self, **values) -> "Found":
        """The same soft masks with other settings."""
        return replace(self, words=replace(self.words, **values))

    @cached_property
    def image(self) -> Tensor:
        return to_tensor(self.picture)[0]

    @cached_property
    def soft(self) -> Tensor:
        """Soft masks [P, H, W], zero for phrases that are not in the picture."""
        masks = fit(self.prediction.present(PRESENT), (self.picture.height, self.picture.width))[0]
        return refine(masks, self.image, self.prediction.reach) if self.words.refine else masks

    @cached_property
    def hard(self) -> Tensor:
        """Masks [P, H, W] of 0 and 1."""
        return (self.soft > self.words.threshold).float()

    @cached_property
    def present(self) -> list[bool]:
        """Of each phrase, whether it was found."""
        return (self.hard.amax((-2, -1)) > 0).tolist()

    @property
    def presence(self) -> list[float | None]:
        """Of each phrase, how sure the method is that it is in the picture; None where it cannot tell."""
        found = self.prediction.presence
        return [None] * len(self.words.phrases) if found is None else [round(x, 3) for x in found[0].tolist()]

    def masks(self) -> list[Image.Image]:
        """A mask a phrase, as it is used."""
        return [grey(mask) for mask in self.words.finished(self.hard)]

    def union(self, chosen: Sequence[int] | None = None) -> Image.Image:
        """One mask of the phrases of those numbers, or of all."""
        kept = self.hard if chosen is None else self.hard[list(chosen)]
        empty = torch.zeros(1, *self.hard.shape[1:])
        return grey(self.words.finished(torch.cat([kept, empty]).amax(0)))

    def overlay(self) -> Image.Image:
        return overlay(self.image, self.soft, self.words.phrases, tau=self.words.threshold)

    def label_map(self) -> Image.Image:
        return label_map(exclusive(self.soft)[1], self.words.phrases)

    def missing(self) -> str:
        """A sentence about the phrases that were not found; empty where all were."""
        names = [phrase for phrase, there in zip(self.words.phrases, self.present, strict=True) if not there]
        return f"not found in the picture: {', '.join(names)}" if names else ""


def grey(mask: Tensor) -> Image.Image:
    """A mask [H, W] in 0..1 as a grey picture."""
    return Image.fromarray((mask * 255).round().byte().cpu().numpy())


class Finder:
    """A method for the loaded checkpoint. Used as a context: after it the decoder is in main memory again."""

    def __init__(self, method: str, progress: Callable[[float], None] | None = None):
        self.backbone = host.backbone()
        if method in METHODS:
            self.decoder = None
            self.segmenter: BaseSegmenter = decoder_free(self.backbone, method, progress=progress)
        else:
            self.decoder = host.decoder(method)
            self.segmenter = Segmenter(self.backbone, self.decoder, progress=progress)

    def __enter__(self) -> "Finder":
        return self

    def __exit__(self, *exception) -> None:
        if self.decoder is not None:
            self.decoder.to("cpu")
        host.free_memory()

    @property
    def wanted(self) -> Wanted | None:
        """The features that the method reads of a sampling run."""
        return Wanted(tuple(self.decoder.taps), self.decoder.timestep) if self.decoder else None

    @property
    def reads_pixels(self) -> bool:
        """Whether the method reads pictures and has no use for latents."""
        return self.decoder is not None and self.decoder.reads == "pixels"

    @torch.inference_mode()
    def find(self, words: Words, picture: Image.Image, seed: int = 0) -> Found:
        """By a pass of the UNet over the picture."""
        return Found(words, picture, self.segmenter.predict(picture, words.phrases, seed=seed))

    @torch.inference_mode()
    def find_sampled(
        self, words: Words, picture: Image.Image, z: Tensor, captured: Features | Queries | None
    ) -> Found:
        """By what was recorded while the latent `z` [1, C, h, w] of the picture was sampled."""
        return Found(words, picture, self.segmenter.predict_latent(z.float(), words.phrases, captured=captured))
