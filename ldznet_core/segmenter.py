"""Image or latent and phrases to soft masks: the one place where host, decoder and mask meet."""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import InputError
from .features import Features
from .images import to_tensor, working_size
from .networks.decoder import MaskDecoder
from .readings import Reading, as_authors, authors_size, repeatable
from .weights import DecoderInfo

FEATURE_TEXTS = ("phrase", "caption", "empty")
PHRASES_AT_ONCE = 8  # bounds the memory of one pass
ROWS_HELD = 32  # and of the features that wait for the decoder: 90 MB in half precision at 512 px
ALIKE = 0.1  # by how much the sides' ratios of an image and its latent may differ, for odd sizes and croppings
ENCODING = 0.3  # the share of the work that is the VAE's, for the progress bar


def check_phrases(phrases: Sequence[str]) -> list[str]:
    """Phrases stripped of blanks. Raises InputError where there is none or one is empty."""
    if isinstance(phrases, str):
        phrases = [phrases]
    phrases = [p.strip() for p in phrases]
    if not phrases:
        raise InputError("no phrase was given: say what to find, for example 'cat'")
    if not all(phrases):
        raise InputError(f"phrase {phrases.index('') + 1} is empty: say what to find, for example 'cat'")
    return phrases


def split_phrases(text: str) -> list[str]:
    """Phrases of a text that holds one a line, or several in a line as in "cat | red apple"; empty ones are left out.

    Raises InputError where nothing is left.
    """
    return check_phrases([p for p in re.split(r"[\n|]", text) if p.strip()])


def check_fit(host, decoder: MaskDecoder) -> None:
    """Raises InputError, naming both, where the decoder was made for another kind of model than the host's."""
    def signature(unet, prediction: str) -> dict:
        shared = {"context width": unet.context_dim}
        if not decoder.taps:
            return shared  # the text encoder is all that ZNet and RGBNet share with the host
        sizes = {"channels": unet.model_channels, "channel multipliers": unet.channel_mult}
        return {**shared, **sizes, "features at": ", ".join(unet.taps), "prediction": prediction}

    info = getattr(decoder, "info", None)
    ours = signature(decoder.decoder_config.unet, info.prediction if info else host.prediction)
    for what, theirs in signature(host.unet_config, host.prediction).items():
        if ours[what] != theirs:
            raise InputError(
                f"this {decoder.kind} decoder was trained for a model of {what} {ours[what]}, "
                f"but that of {host.name} is {theirs}: choose a decoder made for it"
            )


class Segmenter:
    """Soft masks of phrases, from a host's model and a decoder trained for it.

    `text` is what conditions the host's features: "phrase" (one UNet pass a phrase, the paper's way), "caption"
    or "empty" (one pass for all phrases). `samples` masks under different noise are averaged, at that many times the
    cost; `authors` reads as their demo does (see `readings.as_authors`). `progress` is called before every pass of a
    network with the share of the work that is done, 0..1; what it raises (an interruption) ends the work.
    """

    def __init__(
        self,
        host,
        decoder: MaskDecoder,
        text: str = "phrase",
        *,
        samples: int = 1,
        authors: bool = False,
        progress: Callable[[float], None] | None = None,
    ):
        if text not in FEATURE_TEXTS:
            raise InputError(f"features cannot be conditioned on {text!r}: choose one of {', '.join(FEATURE_TEXTS)}")
        if samples < 1:
            raise InputError(f"{samples} samples cannot be averaged: ask for 1 or more")
        check_fit(host, decoder)
        self.host, self.decoder, self.text, self.samples, self.authors = host, decoder, text, samples, authors
        self.progress = progress or (lambda share: None)
        self.info = getattr(decoder, "info", None) or DecoderInfo(family="", prediction=host.prediction)

    @property
    def template(self) -> str:
        """The sentence that a phrase is put in."""
        return self.info.templates[0]

    def __call__(
        self, image, phrases: Sequence[str], *, timestep: int = 400, seed: int = 0, caption: str = ""
    ) -> Tensor:
        """Soft masks [B, P, H, W] in 0..1 at the image's size.

        `image`: PIL, or float [B, H, W, 3] in 0..1. The work is done on a copy of about the area that the decoder
        was trained on, both sides multiples of 64. `caption` describes the image, for `text="caption"`.
        Raises InputError for a bad image, no phrase or an empty one, or a timestep outside 0..999.
        """
        phrases = check_phrases(phrases)
        image = to_tensor(image)
        height, width = image.shape[1:3]
        if self.authors:
            small = lanczos(image, authors_size(height, width, self.info.pixels))
        else:
            small = resize(image, working_size(height, width, area=self.info.pixels, multiple=64))
        turns = self.readings(len(phrases), timestep, seed)
        masks, given, share = [], None, 1 / len(turns)
        for turn, reading in enumerate(turns):
            if given is None or reading.posterior is not None:
                given = self.given(small, reading.posterior, turn * share, share * ENCODING)
            begun = (turn + ENCODING) * share
            masks.append(self.read(given, phrases, reading, caption, None, begun, share * (1 - ENCODING)))
        return fit(sum(masks) / len(masks), (height, width))

    def latent(
        self,
        z: Tensor,
        phrases: Sequence[str],
        *,
        timestep: int = 400,
        seed: int = 0,
        caption: str = "",
        features: Features | None = None,
    ) -> Tensor:
        """Soft masks [B, P, 8h, 8w] of scaled latents [B, 4, h, w] (RGBNet: of images [B, 3, H, W] in -1..1).

        With `features` (captured while sampling, one row an image) no UNet pass is made at all.
        """
        phrases = check_phrases(phrases)
        turns = self.readings(len(phrases), timestep, seed)
        if features is not None:
            turns = turns[:1]  # their noise was the sampler's
        share = 1 / len(turns)
        masks = [self.read(z, phrases, r, caption, features, i * share, share) for i, r in enumerate(turns)]
        return sum(masks) / len(masks)

    def readings(self, phrases: int, timestep: int, seed: int) -> list[Reading]:
        if not 0 <= timestep <= 999:
            raise InputError(f"timestep {timestep} is outside 0..999: LD-ZNet reads features at 300 to 500")
        if self.authors:
            return as_authors(phrases, self.info.templates, self.info.timesteps, seed, self.samples)
        turns = repeatable(phrases, self.template, timestep, seed, self.samples)
        return turns if self.decoder.taps else turns[:1]  # without features there is no noise to average over

    def given(self, images: Tensor, posterior: int | None, done: float, share: float) -> Tensor:
        """What the decoder reads of images [B, H, W, 3] in 0..1: their scaled latents, or for RGBNet themselves."""
        if self.decoder.kind == "rgbnet":
            return images.permute(0, 3, 1, 2) * 2 - 1
        sampled = {} if posterior is None else {"seed": posterior}
        return encode(self.host, images, lambda part: self.progress(done + share * part), **sampled)

    @torch.inference_mode()
    def read(
        self,
        z: Tensor,
        phrases: Sequence[str],
        reading: Reading,
        caption: str = "",
        features: Features | None = None,
        done: float = 0.0,
        share: float = 1.0,
    ) -> Tensor:
        """Masks of one reading, as `latent`; `done` is the share of the work that came before, `share` its own."""
        pixels = self.decoder.kind == "rgbnet"
        if pixels and z.shape[1] != 3:
            raise InputError("an rgbnet decoder reads pixels, not latents: use it where there is an image to look at")
        scale = 1 if pixels else 8
        height, width = z.shape[-2] * scale, z.shape[-1] * scale
        z = padded(z, 64 // scale)
        text = self.host.embed([t.format(p) for t, p in zip(reading.templates, phrases, strict=True)])
        taps, noise = self.decoder.taps, {"timestep": reading.timestep, "seed": reading.seed}
        if taps and features is None and self.text != "phrase":
            shared = self.host.embed([caption if self.text == "caption" else ""]).expand(len(z))
            features = self.host.extract(z, shared, taps, said=self.text, **noise)

        groups = [text[i : i + PHRASES_AT_ONCE] for i in range(0, len(phrases), PHRASES_AT_ONCE)]
        work = [(row, group) for row in range(len(z)) for group in groups]
        parts: list[Tensor] = []
        held = max(1, ROWS_HELD // PHRASES_AT_ONCE)
        for start in range(0, len(work), held):
            block = work[start : start + held]
            # All features, then all masks: a host short of memory changes networks twice a block, not twice a mask.
            maps = []
            for i, (row, group) in enumerate(block):
                self.progress(done + share * (start + i / 2) / len(work))
                one = z[row : row + 1].expand(len(group), -1, -1, -1)
                if not taps:
                    maps.append(None)
                elif features is None:
                    maps.append(self.host.extract(one, group, taps, **noise).maps)
                else:
                    maps.append(features.row(row).repeat(len(group)).maps)
            for i, ((row, group), found) in enumerate(zip(block, maps, strict=True)):
                self.progress(done + share * (start + (len(block) + i) / 2) / len(work))
                one = z[row : row + 1].expand(len(group), -1, -1, -1)
                parts.append(self.decode(one, group.context, found))
        self.progress(done + share)
        return torch.cat(parts).unflatten(0, (len(z), len(phrases)))[..., :height, :width]

    def decode(self, z: Tensor, context: Tensor, maps: Sequence[Tensor] | None) -> Tensor:
        """Masks [P, 8h, 8w] of latents [P, 4, h, w], in float32 on the CPU."""
        decoder = self.host.ready(self.decoder, z)
        like = next(decoder.parameters())
        logits = decoder(z.to(like), context.to(like), maps and [m.to(like) for m in maps])
        return logits[:, 0].float().sigmoid().cpu()


def encode(host, images: Tensor, progress: Callable[[float], None], **options) -> Tensor:
    """Scaled latents of images [B, H, W, 3], one at a time; `progress` is told the share done before each."""
    latents = []
    for i in range(len(images)):
        progress(i / len(images))
        latents.append(host.encode(images[i : i + 1], **options))
    return torch.cat(latents)


def padded(z: Tensor, multiple: int) -> Tensor:
    """Latents or images [B, C, h, w] with sides of that multiple, for networks that halve their grid three times. What
    is added, at the right and below, repeats the edge."""
    return F.pad(z, (0, -z.shape[-1] % multiple, 0, -z.shape[-2] % multiple), mode="replicate")


def check_pair(image: Tensor, z: Tensor) -> None:
    """Raises InputError where images [B, H, W, 3] cannot be those of latents [B, 4, h, w]: another number of them or
    another shape. They may be larger or smaller."""
    (batch, height, width), (latents, rows, columns) = image.shape[:3], (len(z), *z.shape[-2:])
    if batch != latents:
        raise InputError(f"{batch} images do not go with {latents} latents: give as many of each, or one of the two")
    if abs(width * rows / (height * columns) - 1) > ALIKE:
        raise InputError(
            f"an image of {width}x{height} is not that of a latent of {columns * 8}x{rows * 8} pixels: "
            "give the image that was decoded from it, or only one of the two"
        )


def fit(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [B, P, h, w] in 0..1 at another size, smoothed where they shrink."""
    if masks.shape[-2:] == size:
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W, 3] to [B, *size, 3], smoothed where it shrinks."""
    if image.shape[1:3] == size:
        return image
    pixels = image.permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return pixels.permute(0, 2, 3, 1).clamp(0, 1)


def lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """As `resize`, by Pillow's Lanczos filter on 8 bits, as the authors do."""
    bytes_ = (image.cpu() * 255).round().byte().numpy()
    small = [to_tensor(Image.fromarray(one).resize(size[::-1], Image.Resampling.LANCZOS)) for one in bytes_]
    return torch.cat(small)
