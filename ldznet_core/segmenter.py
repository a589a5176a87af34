"""Image or latent and phrases to soft masks: the one place where host, decoder and mask meet."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .features import Features
from .images import to_tensor, working_size
from .networks.decoder import MaskDecoder

FEATURE_TEXTS = ("phrase", "caption", "empty")
PHRASES_AT_ONCE = 8  # bounds the memory of one pass


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


def check_fit(host, decoder: MaskDecoder) -> None:
    """Raises InputError, naming both, where the decoder was made for another kind of model than the host's."""
    def signature(unet, prediction: str) -> dict:
        shared = {"context width": unet.context_dim}
        if not decoder.taps:
            return shared  # the text encoder is all that ZNet and RGBNet share with the host
        sizes = {"channels": unet.model_channels, "channel multipliers": unet.channel_mult}
        return {**shared, **sizes, "prediction": prediction}

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
    or "empty" (one pass for all phrases).
    """

    def __init__(self, host, decoder: MaskDecoder, text: str = "phrase"):
        if text not in FEATURE_TEXTS:
            raise InputError(f"features cannot be conditioned on {text!r}: choose one of {', '.join(FEATURE_TEXTS)}")
        check_fit(host, decoder)
        self.host, self.decoder, self.text = host, decoder.to(host.device), text
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
        image = to_tensor(image)
        height, width = image.shape[1:3]
        size = working_size(height, width, area=self.pixels, multiple=64)
        small = image if size == (height, width) else resize(image, size)
        if self.decoder.kind == "rgbnet":
            given = (small.permute(0, 3, 1, 2) * 2 - 1).to(self.host.device)
        else:
            given = self.host.encode(small)
        masks = self.latent(given, phrases, timestep=timestep, seed=seed, caption=caption)
        return F.interpolate(masks, (height, width), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)

    @torch.inference_mode()
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
        if not 0 <= timestep <= 999:
            raise InputError(f"timestep {timestep} is outside 0..999: LD-ZNet reads features at 300 to 500")
        taps = self.decoder.taps
        context = self.host.embed([self.template.format(p) for p in phrases])  # [P, 77, D]
        if taps and features is None and self.text != "phrase":
            said = self.host.embed([caption if self.text == "caption" else ""]).expand(len(z), -1, -1)
            features = self.host.extract(z, said, taps, timestep=timestep, seed=seed, text=self.text)
        rows = []
        for row in range(len(z)):
            given = z[row : row + 1]
            shared = features and Features(
                tuple(m[row : row + 1] for m in features.maps), features.taps, features.timestep, features.text
            )
            parts = [
                self.one(given, context[i : i + PHRASES_AT_ONCE], shared, timestep, seed)
                for i in range(0, len(phrases), PHRASES_AT_ONCE)
            ]
            rows.append(torch.cat(parts))
        return torch.stack(rows).float().cpu()

    def one(self, z: Tensor, context: Tensor, shared: Features | None, timestep: int, seed: int) -> Tensor:
        """Masks [P, 8h, 8w] of one latent [1, 4, h, w] for a handful of phrases."""
        count = len(context)
        z = z.expand(count, -1, -1, -1)
        features = shared.repeat(count) if shared else None
        if self.decoder.taps and features is None:
            features = self.host.extract(z, context, self.decoder.taps, timestep=timestep, seed=seed)
        logits = self.decoder(z, context, features.maps if features else None)
        return logits[:, 0].sigmoid()


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W, 3] to [B, *size, 3], smoothed where it shrinks."""
    pixels = image.permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)
    return pixels.permute(0, 2, 3, 1).clamp(0, 1)
