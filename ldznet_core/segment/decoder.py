"""Masks by a decoder: an image or a latent and phrases become soft masks with features of a backbone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backbones.base import require
from ..backbones.recording import Features, Text
from ..decoders.base import CONDITIONS, Decoder, DecoderInfo
from ..errors import InputError
from ..imaging.images import to_tensor
from .base import ENCODING, GRID, PRESENT, ROWS_AT_ONCE, BaseSegmenter, MaskPrediction, encode
from .features import Keys, decoder_features, padded_features, phrase_keys
from .phrases import check_phrases
from .protocol import PassSpec, as_authors, authors_size, repeatable
from .sizing import fit, lanczos, padded, resize, working_size

ROWS_HELD = 32  # of the features that wait for the decoder: 90 MB in half precision at 512 px


def check_fit(backbone, decoder: Decoder) -> None:
    """Raises InputError, naming both, where the decoder was made for another kind of model than the backbone's."""

    def signature(unet, prediction: str) -> dict:
        shared = {"context width": unet.context_dim}
        if not decoder.taps:
            return shared  # the text encoder is all that a decoder without features shares with the backbone
        sizes = {"channels": unet.model_channels, "channel multipliers": unet.channel_mult}
        return {**shared, **sizes, "features at": ", ".join(unet.taps), "prediction": prediction}

    its = signature(decoder.backbone_config, decoder.info.prediction if decoder.info else backbone.prediction)
    for what, theirs in signature(backbone.unet_config, backbone.prediction).items():
        if its[what] != theirs:
            raise InputError(
                f"this {decoder.kind} decoder was trained for a model of {what} {its[what]}, "
                f"but that of {backbone.name} is {theirs}: choose a decoder made for it"
            )


def best_condition(decoder: Decoder) -> str:
    """What conditions features by default: nothing, which costs one UNet pass for any number of phrases, where the
    decoder was trained so, and else each phrase."""
    return "empty" if "empty" in decoder.conditions else "phrase"


class Segmenter(BaseSegmenter):
    """Soft masks of phrases, from a backbone and a decoder trained for it.

    `text` says what conditions the backbone while features are read: "phrase" (a UNet pass for each phrase, the
    paper's way), "caption" or "empty" (one pass for all phrases). By default it is the cheapest that the decoder was
    trained under. `samples` masks under different noise are averaged, at that many times the cost. `authors` works as
    their demo does (see `protocol.as_authors`). Raises InputError where the decoder does not fit the backbone.
    """

    def __init__(
        self,
        backbone,
        decoder: Decoder,
        text: str | None = None,
        *,
        samples: int | None = None,
        authors: bool = False,
        progress: Callable[[float], None] | None = None,
    ):
        if text is not None and text not in CONDITIONS:
            raise InputError(f"features cannot be conditioned on {text!r}: choose one of {', '.join(CONDITIONS)}")
        super().__init__(backbone, samples, progress)
        if decoder.taps:
            require(backbone, "features")
        check_fit(backbone, decoder)
        self.decoder, self.authors, self.tells_presence = decoder, authors, decoder.tells_presence
        self.timestep = decoder.timestep
        self.text = text or ("phrase" if authors else best_condition(decoder))
        self.info = decoder.info or DecoderInfo(family="", prediction=backbone.prediction)

    @property
    def area(self) -> int:
        return self.info.pixels

    @property
    def template(self) -> str:
        """The sentence that a phrase is put in."""
        return self.info.templates[0]

    def predict(
        self, image, phrases: Sequence[str], *, timestep: int | None = None, seed: int = 0, caption: str = ""
    ) -> MaskPrediction:
        """As in the base. `caption` is what conditions the features with `text="caption"`."""
        phrases, image, timestep = check_phrases(phrases), to_tensor(image), self.check_timestep(timestep)
        size = tuple(image.shape[1:3])
        if not len(image):
            return self.predict_nothing(len(phrases), size)
        if self.authors:
            small = lanczos(image, authors_size(*size, self.area))
        else:
            small = resize(image, working_size(*size, area=self.area, multiple=GRID))
        specs = self.pass_specs(len(phrases), timestep, seed)
        found, decoder_input, share = [], None, 1 / len(specs)
        for i, spec in enumerate(specs):
            if decoder_input is None or spec.posterior is not None:
                decoder_input = self.decoder_input(small, spec.posterior, i * share, share * ENCODING)
            done = (i + ENCODING) * share
            found.append(self.decode_pass(decoder_input, phrases, spec, caption, None, done, share * (1 - ENCODING)))
        prediction = averaged(found)
        return replace(prediction, masks=fit(prediction.masks, size))

    def predict_passes(
        self,
        z: Tensor,
        phrases: Sequence[str],
        timestep: int,
        seed: int,
        caption: str,
        captured: Features | None,
        done: float,
    ) -> MaskPrediction:
        if self.decoder.reads == "pixels":
            raise InputError(
                f"a decoder of kind {self.decoder.kind} reads pixels, not latents: use it where there is an image"
            )
        specs = self.pass_specs(len(phrases), timestep, seed)
        if captured is not None:
            specs = specs[:1]  # the noise was the sampler's
            captured = captured.select(self.decoder.taps)
        share = (1 - done) / len(specs)
        return averaged(
            [
                self.decode_pass(z, phrases, spec, caption, captured, done + i * share, share)
                for i, spec in enumerate(specs)
            ]
        )

    def pass_specs(self, phrases: int, timestep: int, seed: int) -> list[PassSpec]:
        if self.authors:
            return as_authors(phrases, self.info.templates, self.info.timesteps, seed, self.samples)
        specs = repeatable(phrases, self.template, timestep, seed, self.samples)
        return specs if self.decoder.taps else specs[:1]  # without features there is no noise to average over

    def decoder_input(self, images: Tensor, posterior: int | None, done: float, share: float) -> Tensor:
        """What the decoder reads of images [B, H, W, 3] in 0..1: scaled latents [B, C, H/8, W/8], or pixels
        [B, 3, H, W] in -1..1."""
        if self.decoder.reads == "pixels":
            return images.permute(0, 3, 1, 2) * 2 - 1
        sampled = {} if posterior is None else {"seed": posterior}
        return encode(self.backbone, images, lambda part: self.progress(done + share * part), **sampled)

    @torch.inference_mode()
    def decode_pass(
        self,
        z: Tensor,
        phrases: Sequence[str],
        spec: PassSpec,
        caption: str,
        captured: Features | None,
        done: float,
        share: float,
    ) -> MaskPrediction:
        """Masks [B, P, H, W], and presence, of what `decoder_input` gives, under one noise; `done` is the share of the
        work that came before, `share` that of this pass."""
        scale = 1 if self.decoder.reads == "pixels" else 8
        height, width = z.shape[-2] * scale, z.shape[-1] * scale
        size, z = tuple(z.shape[-2:]), padded(z, GRID // scale)
        if captured is not None and tuple(z.shape[-2:]) != size:
            captured = padded_features(captured, size, tuple(z.shape[-2:]))
        text = self.backbone.embed([t.format(p) for t, p in zip(spec.templates, phrases, strict=True)])
        groups = self.with_keys([text[i : i + ROWS_AT_ONCE] for i in range(0, len(phrases), ROWS_AT_ONCE)])
        work = [(row, group) for row in range(len(z)) for group in groups]
        per_phrase = bool(self.decoder.taps) and captured is None and self.text == "phrase"
        at_once = ROWS_HELD // ROWS_AT_ONCE if per_phrase else ROWS_AT_ONCE * len(groups)
        parts: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(work), at_once):
            # All features, then all masks: a backbone short of memory moves networks twice a block, not twice a mask.
            block = work[start : start + at_once]
            begun, each = done + share * start / len(work), share / len(work)
            self.progress(begun)
            if captured is not None or not self.decoder.taps:
                features = [captured and captured.row(row) for row, _ in block]
            elif per_phrase:
                features = self.phrase_features(z, block, spec, begun, each / 2)
            else:
                first, last = block[0][0], block[-1][0]
                text = self.backbone.embed([caption if self.text == "caption" else ""]).expand(last + 1 - first)
                shared = self.extract(z[first : last + 1], text, spec)
                features = [shared.row(row - first) for row, _ in block]
            for i, ((row, group), one) in enumerate(zip(block, features, strict=True)):
                self.progress(begun + each * (len(block) + i) / 2)
                parts.append(self.decode(z[row : row + 1], *group, one))
        self.progress(done + share)
        masks, presence = (torch.cat(part).unflatten(0, (len(z), len(phrases))) for part in zip(*parts, strict=True))
        return MaskPrediction(masks[..., :height, :width], presence if self.tells_presence else None)

    def phrase_features(
        self, z: Tensor, block: Sequence[tuple[int, tuple[Text, list[Keys]]]], spec: PassSpec, done: float, each: float
    ) -> list[Features]:
        """Features of pairs of a row of `z` and a group of phrases, one row a phrase."""
        features = []
        for i, (row, (group, _)) in enumerate(block):
            if i:
                self.progress(done + each * i)
            features.append(self.extract(z[row : row + 1].expand(len(group), -1, -1, -1), group, spec))
        return features

    def extract(self, z: Tensor, text: Text, spec: PassSpec) -> Features:
        return self.backbone.extract(
            z, text, self.decoder.taps, timestep=spec.timestep, seed=spec.seed, conditioning=self.text
        )

    def with_keys(self, groups: Sequence[Text]) -> list[tuple[Text, list[Keys]]]:
        """Each group of phrases with its keys for the layers whose attention the decoder reads."""
        empty = self.backbone.embed([""]) if self.decoder.attends else None
        return [(group, phrase_keys(self.backbone, self.decoder, group, empty)) for group in groups]

    def decode(
        self, z: Tensor, phrases: Text, keys: Sequence[Keys], features: Features | None
    ) -> tuple[Tensor, Tensor]:
        """Masks [P, 8h, 8w] and presence [P] of phrases in the latent `z` [1, C, h, w], in float32 on the CPU; presence
        is 0 where the decoder does not tell. Features of one row serve all phrases."""
        decoder = self.backbone.ready(self.decoder, z)
        like = next(decoder.parameters())
        read, timesteps = None, None
        if features is not None:
            z = z.expand(len(features.maps[0]), -1, -1, -1)
            read = decoder_features(
                decoder, features.maps, tuple(z.shape[-2:]), keys, self.backbone.unet_config.heads
            )
            read = [one.to(like) for one in read]
            timesteps = torch.full((len(z),), features.timestep, device=like.device)
        logits, odds = decoder.predict(z.to(like), phrases.context.to(like), read, timesteps)  # [P, 1, 8h, 8w], [P]
        odds = torch.zeros(len(logits)) if odds is None else odds.float().cpu() + PRESENT
        return logits[:, 0].float().sigmoid().cpu(), odds


def averaged(found: Sequence[MaskPrediction]) -> MaskPrediction:
    """The mean of predictions of the same phrases under different noise."""
    masks = sum(one.masks for one in found) / len(found)
    presence = None if found[0].presence is None else sum(one.presence for one in found) / len(found)
    return MaskPrediction(masks, presence)
