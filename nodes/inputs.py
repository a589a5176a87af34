"""What nodes take: every input is brought to one form here, or refused in one sentence.

ComfyUI checks the types of links but not what they carry. Other packs hand on None, lists, integers, NaN, empty
batches and tensors of any number of dimensions.
"""

import math
from numbers import Integral, Real
from operator import attrgetter

import torch
from torch import Tensor

from ..ldznet_core.errors import InputError
from ..ldznet_core.segment.phrases import split_phrases

SOURCES = {
    "model": "MODEL of a loader such as Load Checkpoint",
    "clip": "CLIP of the checkpoint's loader, or of Load CLIP",
    "decoder": "DECODER of Load Decoder or Load Miniature",
    "capture": "CAPTURE of the Capture node",
    "latent": "LATENT of the sampler",
    "image": "an IMAGE",
    "mask": "a MASK",
    "conditioning": "the CONDITIONING of a prompt, such as that of CLIP Text Encode",
    "masks": "the masks of Segment, Segment Captured or Segment without Decoder",
}
# What shows that a thing of that name is connected: links through nodes of any type carry everything.
MARKS = {"model": "model.model_config", "clip": "clip_layer", "decoder": "model.taps"}
MOST_SEED = 0xFFFFFFFFFFFFFFFF
NOT_FINITE = "{} {} has values that are not finite (NaN or infinity): look at what made it"
SLACK = 0.5  # resizing overshoots: values this far outside 0..1 are clamped, others are of another scale


def check_connected(**inputs) -> None:
    """Raises InputError for the first input that is None, which is what loaders give of a part that a file lacks, or
    that is of another kind than its name says."""
    for name, value in inputs.items():
        if value is None:
            raise InputError(f"{name} is empty: nothing is connected, or the file that was loaded has none; connect "
                             f"{SOURCES[name]}")
        try:
            attrgetter(MARKS.get(name, "__class__"))(value)
        except AttributeError:
            raise InputError(f"{name} is something else, {short(value)}: connect {SOURCES[name]}") from None


def phrases_of(text) -> list[str]:
    """The phrases of a text, or of a list of texts. Raises InputError for anything else, or where there is none."""
    parts = list(text) if isinstance(text, list | tuple) else [text]
    for part in parts:
        if not isinstance(part, str):
            raise InputError(f"text must be a text or a list of texts, but holds {short(part)}: connect a STRING")
    return split_phrases("\n".join(parts))


def caption_of(caption, name: str = "caption") -> str:
    """A text that may be missing: None is the empty text. Raises InputError for what is no text."""
    if not isinstance(caption, str | None):
        raise InputError(f"{name} must be a text, got {short(caption)}: connect a STRING")
    return (caption or "").strip()


def images_of(image, name: str = "image") -> Tensor:
    """An IMAGE as float32 [B, H, W, 3] in 0..1, from [H, W, C] or [B, H, W, C] of any dtype with 1, 3 or 4 channels.

    B may be 0. Grey is repeated, transparency is left out, as stock nodes do. Raises InputError for other shapes, for
    values far outside 0..1 and for NaN.
    """
    check_connected(**{name: image})
    expected = f"{name} must be [H, W, C] or [B, H, W, C] with 1, 3 or 4 channels"
    x = tensor_of(image, expected)
    x = x[None] if x.ndim == 3 else x  # [B, H, W, C]
    if x.ndim != 4 or x.shape[-1] not in (1, 3, 4) or 0 in x.shape[1:]:
        raise InputError(f"{expected}, got {[*image.shape]}")
    x = x.expand(-1, -1, -1, 3) if x.shape[-1] == 1 else x[..., :3]
    return unit(x, name, flags=False)


def masks_of(mask, name: str = "mask") -> Tensor:
    """A MASK as float32 [B, H, W] in 0..1, from [H, W], [B, H, W], [B, 1, H, W] or [B, H, W, 1] of any dtype.

    B may be 0. Raises InputError for other shapes, for values far outside 0..1 and for NaN.
    """
    check_connected(**{name: mask})
    expected = f"{name} must be [H, W], [B, H, W], [B, 1, H, W] or [B, H, W, 1]"
    x = tensor_of(mask, expected)
    if x.ndim == 2:
        x = x[None]
    elif x.ndim == 4 and 1 in (x.shape[1], x.shape[3]):
        x = x.squeeze(1 if x.shape[1] == 1 else 3)
    if x.ndim != 3 or 0 in x.shape[1:]:
        raise InputError(f"{expected}, got {[*mask.shape]}" + (
            ": an image becomes a mask in Convert Image to Mask" if mask.shape[-1:] in ((3,), (4,)) else ""
        ))
    return unit(x, name, flags=True)


def by_image(masks: Tensor, phrases: list[str]) -> Tensor:
    """Masks [B*P, H, W] as [B, P, H, W]. Raises InputError where they are not those of P phrases."""
    if len(masks) % len(phrases):
        raise InputError(f"{len(masks)} masks are not those of {len(phrases)} phrases: give the text that made them")
    return masks.unflatten(0, (len(masks) // len(phrases), len(phrases)))


def latent_of(latent, name: str = "latent") -> Tensor:
    """The latents of a LATENT, as they came. Raises InputError where it holds none, or where they are empty or NaN."""
    check_connected(**{name: latent})
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor):
        raise InputError(f"{name} must be a LATENT with a tensor of samples, got {short(latent)}")
    if 0 in samples.shape[1:]:
        raise InputError(f"{name} of shape {[*samples.shape]} is empty: look at what made it")
    if not samples.isfinite().all():
        raise InputError(NOT_FINITE.format(name, [*samples.shape]))
    return samples


def conditioning_of(conditioning, name: str = "conditioning") -> list:
    """A CONDITIONING as it came. Raises InputError for anything else, or where it holds no prompt."""
    check_connected(**{name: conditioning})
    pairs = isinstance(conditioning, list) and all(
        isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[1], dict) for one in conditioning
    )
    if not pairs or not conditioning:
        raise InputError(f"{name} holds no prompt, got {short(conditioning)}: connect {SOURCES['conditioning']}")
    return conditioning


def pictures_of(image, latent) -> tuple[Tensor | None, Tensor | None]:
    """The optional IMAGE [B, H, W, 3] and LATENT's samples that a node looks at. Raises InputError without either."""
    if image is None and latent is None:
        raise InputError("there is no image to segment: connect an image or a latent")
    return None if image is None else images_of(image), None if latent is None else latent_of(latent)


def number(name: str, value, low: float, high: float) -> float:
    """A number in low..high. Raises InputError for anything else; links are not held to a widget's range."""
    if not isinstance(value, Real) or not low <= value <= high:  # NaN is in no range
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {short(value)}")
    return float(value)


def whole(name: str, value, low: int, high: int) -> int:
    """A whole number in low..high. Raises InputError for anything else."""
    integral = isinstance(value, Integral) or isinstance(value, float) and value.is_integer()
    if not integral or not low <= value <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, got {short(value)}")
    return int(value)


def tensor_of(value, expected: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"{expected}, got {short(value)}")
    return value.detach()


def unit(x: Tensor, name: str, flags: bool) -> Tensor:
    """Values of any dtype as float32 in 0..1: integers by their range, 8 or 16 bits. With `flags` integers that are
    nowhere above 1 are 0 and 1 already. Raises InputError for values far outside and for NaN."""
    if x.dtype == torch.bool or not x.numel():
        return x.float()
    integers, x = not x.is_floating_point(), x.float()
    low, high = (bound.item() for bound in x.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(NOT_FINITE.format(name, [*x.shape]))
    if integers and low >= 0 and not (flags and high <= 1):
        top = 255 if high <= 255 else 65535
        x, high = x / top, high / top
    if low < -SLACK or high > 1 + SLACK:
        raise InputError(f"{name} {[*x.shape]} has values from {low:g} to {high:g}: scale them to 0..1 first")
    return x.clamp(0, 1)


def short(value) -> str:
    """A value as an error quotes it."""
    text = repr(value) if isinstance(value, str | Real) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= 40 else text[:37] + "..."
