"""Image or latent and phrases to soft masks: the one place where host, decoder and mask meet."""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .features import Features
from .images import to_tensor, working_size
from .networks.decoder import MaskDecoder

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
    or "empty" (one pass for all phrases). `progress` is called before every pass of a network with the share of
    the work that is done, 0..1; what it raises (an interruption) ends the work.
    """

    def __init__(
        self, host, decoder: MaskDecoder, text: str = "phrase", progress: Callable[[float], None] | None = None
    ):
        if text not in FEATURE_TEXTS:
            raise InputError(f"features cannot be conditioned on {text!r}: choose one of {', '.join(FEATURE_TEXTS)}")
        check_fit(host, decoder)
        self.host, self.decoder, self.text = host, decoder, text
        self.progress = progress or (lambda share: None)
        info = getattr(decoder, "info", None)
        self.template = info.templates[0] if info else "a photo of a {}."
        self.pixels = info.pixels if info else 384 * 384

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
        size = working_size(height, width, area=self.pixels, multiple=64)
        small = image if size == (height, width) else resize(image, size)
        given = []
        for i in range(len(small)):
            self.progress(ENCODING * i / len(small))
            given.append(self.given(small[i : i + 1]))
        masks = self.masks(
            torch.cat(given), phrases, timestep=timestep, seed=seed, caption=caption, done=ENCODING
        )
        return fit(masks, (height, width))

    def given(self, image: Tensor) -> Tensor:
        """What the decoder reads of images [B, H, W, 3] in 0..1: their scaled latents, or for RGBNet themselves."""
        if self.decoder.kind == "rgbnet":
            return image.permute(0, 3, 1, 2) * 2 - 1
        return self.host.encode(image)

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
        return self.masks(z, phrases, timestep=timestep, seed=seed, caption=caption, features=features)

    @torch.inference_mode()
    def masks(
        self,
        z: Tensor,
        phrases: Sequence[str],
        *,
        timestep: int,
        seed: int,
        caption: str,
        features: Features | None = None,
        done: float = 0.0,
    ) -> Tensor:
        """As `latent`; `done` is the share of the work that came before."""
        phrases = check_phrases(phrases)
        if not 0 <= timestep <= 999:
            raise InputError(f"timestep {timestep} is outside 0..999: LD-ZNet reads features at 300 to 500")
        pixels = self.decoder.kind == "rgbnet"
        if pixels and z.shape[1] != 3:
            raise InputError("an rgbnet decoder reads pixels, not latents: use it where there is an image to look at")
        scale = 1 if pixels else 8
        height, width = z.shape[-2] * scale, z.shape[-1] * scale
        # The decoder halves its grid three times; what is added at the right and below is cut off again.
        z = F.pad(z, (0, -z.shape[-1] % (64 // scale), 0, -z.shape[-2] % (64 // scale)), mode="replicate")
        text = self.host.embed([self.template.format(p) for p in phrases])  # one row a phrase
        taps = self.decoder.taps
        if taps and features is None and self.text != "phrase":
            shared = self.host.embed([caption if self.text == "caption" else ""]).expand(len(z))
            features = self.host.extract(z, shared, taps, timestep=timestep, seed=seed, said=self.text)

        groups = [text[i : i + PHRASES_AT_ONCE] for i in range(0, len(phrases), PHRASES_AT_ONCE)]
        work = [(row, group) for row in range(len(z)) for group in groups]
        parts: list[Tensor] = []
        held = max(1, ROWS_HELD // PHRASES_AT_ONCE)
        for start in range(0, len(work), held):
            block = work[start : start + held]
            # All features, then all masks: a host short of memory changes networks twice a block, not twice a mask.
            maps = []
            for i, (row, group) in enumerate(block):
                self.progress(done + (1 - done) * (start + i / 2) / len(work))
                one = z[row : row + 1].expand(len(group), -1, -1, -1)
                if not taps:
                    maps.append(None)
                elif features is None:
                    maps.append(self.host.extract(one, group, taps, timestep=timestep, seed=seed).maps)
                else:
                    maps.append(features.row(row).repeat(len(group)).maps)
            for i, ((row, group), found) in enumerate(zip(block, maps, strict=True)):
                self.progress(done + (1 - done) * (start + (len(block) + i) / 2) / len(work))
                one = z[row : row + 1].expand(len(group), -1, -1, -1)
                parts.append(self.decode(one, group.context, found))
        self.progress(1.0)
        return torch.cat(parts).unflatten(0, (len(z), len(phrases)))[..., :height, :width]

    def decode(self, z: Tensor, context: Tensor, maps: Sequence[Tensor] | None) -> Tensor:
        """Masks [P, 8h, 8w] of latents [P, 4, h, w], in float32 on the CPU."""
        decoder = self.host.ready(self.decoder, z)
        like = next(decoder.parameters())
        logits = decoder(z.to(like), context.to(like), maps and [m.to(like) for m in maps])
        return logits[:, 0].float().sigmoid().cpu()


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
    pixels = image.permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return pixels.permute(0, 2, 3, 1).clamp(0, 1)
