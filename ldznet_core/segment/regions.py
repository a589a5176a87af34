"""Words found in the steps of a sampler, for regions that prompts of their own draw (`backbones/steering.py`).

The steps are the sampler's own: no pass of the denoiser is added.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import require
from ..backbones.families.unet import plan
from ..backbones.queries import Queries
from ..backbones.recording import Features, tapped
from ..backbones.steering import INSIDE, Step
from ..decoders.base import Decoder, DecoderInfo
from ..errors import InputError
from .attention import phrase_keys
from .attention_maps import evidence, masks_of, phrase_attention
from .base import PRESENT
from .decoder import Segmenter
from .guided_filter import fitted

CUT = 0.6  # of the attention's peak, where the words are: at 0.7 the miniature's regions are too small
REACH = 1 / 8  # of the shorter side: how far attention's edges may be from those of what is drawn
FLAT = 0.1  # variance of a latent, whose own is about 1, below which a neighbourhood has no edges


class AttentionReader:
    """Finds phrases by the queries of a step: by the share of attention that goes to their words where these compete
    with the words of the prompt.

    That share is measured against its own mean over the image, because early steps are close to the pure noise that
    attention is compared with otherwise. So every phrase is found somewhere. It is not spread along self-attention:
    that early, it would run into other things. Its edges become those of the clean latent that the step estimates.
    """

    def __init__(self, backbone, phrases: Sequence[str]):
        require(backbone, "queries")
        self.backbone, self.phrases = backbone, phrases
        self.config = backbone.unet_config
        self.context: Tensor | None = None  # the prompt that `keys` are made with
        self.keys: list[tuple[Tensor, Tensor]] = []

    def modules(self, size: tuple[int, int], find: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
        return plan(self.config, *size).modules(find)

    def masks(self, step: Step) -> Tensor | None:
        queries = Queries.of(plan(self.config, *step.size), step.size, step.outputs)
        if queries is None:
            return None
        if self.context is not step.context:
            self.keys = phrase_keys(self.backbone, queries.plan, self.backbone.embed(self.phrases), step.context)
            self.context = step.context
        rows = zip(range(len(queries)), step.clean.float(), strict=True)
        return torch.stack([self.mask(queries.row(row), clean) for row, clean in rows]).clamp(max=1)

    def mask(self, queries: Queries, clean: Tensor) -> Tensor:
        """The mask [h, w] of one image, on the grid of its latent `clean` [C, h, w]: the highest of its phrases."""
        shares = phrase_attention(queries, self.keys, self.config, self.context.shape[1])
        size = tuple(clean.shape[-2:])
        found = evidence(shares, shares, queries).float().cpu()  # [1, P, h_i, w_i]
        found = F.interpolate(found, size, mode="bilinear", align_corners=False)[0]
        found = fitted(found, clean.cpu(), max(1, round(REACH * min(size))), FLAT)
        return masks_of(found).amax(0).to(clean.device) * (INSIDE / CUT)


class DecoderReader:
    """Finds phrases by a decoder, in a step's estimate of the clean latent and with the step's features."""

    def __init__(self, backbone, decoder: Decoder, phrases: Sequence[str]):
        if decoder.reads == "pixels":
            raise InputError(
                f"a decoder of kind {decoder.kind} reads pixels, and there are none before the picture is finished: "
                "choose a light decoder"
            )
        self.segmenter, self.decoder, self.phrases = Segmenter(backbone, decoder, text="caption"), decoder, phrases

    def modules(self, size: tuple[int, int], find: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
        return {tap: tapped(find, tap) for tap in self.decoder.taps}

    def masks(self, step: Step) -> Tensor | None:
        if any(tap not in step.outputs for tap in self.decoder.taps):
            return None
        maps = tuple(step.outputs[tap] for tap in self.decoder.taps)
        features = Features(maps, self.decoder.taps, step.timestep, "caption") if maps else None
        found = self.segmenter.predict_latent(step.clean, self.phrases, captured=features)
        return found.present(PRESENT).amax(1).to(step.clean.device)


def reader(backbone, decoder: Decoder | None, phrases: Sequence[str]) -> AttentionReader | DecoderReader:
    """By the decoder where there is one, else by attention."""
    return DecoderReader(backbone, decoder, phrases) if decoder else AttentionReader(backbone, phrases)


def texts_read(decoder: Decoder | None, phrases: Sequence[str]) -> list[str]:
    """All that `reader` has encoded of phrases, where texts are encoded before a run."""
    template = "{}"
    if decoder:
        template = (decoder.info or DecoderInfo(family="", prediction="")).templates[0]  # as `Segmenter`
    return list(dict.fromkeys(["", *(template.format(phrase) for phrase in phrases)]))
