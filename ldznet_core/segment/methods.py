"""The methods that need no decoder, by the names that people choose them by."""

from collections.abc import Callable

from ..errors import InputError
from .attention import AttentionSegmenter
from .base import BaseSegmenter
from .joint_attention import JointAttentionSegmenter
from .noise import NoiseSegmenter

METHODS = {"attention": AttentionSegmenter, "noise": NoiseSegmenter}


def decoder_free(
    backbone,
    method: str = "attention",
    *,
    spread: str = "auto",
    samples: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> BaseSegmenter:
    """The method of that name, bound to a backbone. Attention is that of a UNet or of a transformer, whichever the
    backbone has, and alone has a use for `spread`. Raises InputError for another name."""
    if method not in METHODS:
        raise InputError(f"no method {method!r}: choose one of {', '.join(METHODS)}")
    if method != "attention":
        return METHODS[method](backbone, samples=samples, progress=progress)
    kind = JointAttentionSegmenter if "joint" in backbone.capabilities else AttentionSegmenter
    return kind(backbone, spread=spread, samples=samples, progress=progress)
