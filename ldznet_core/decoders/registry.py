"""The decoders that there are: the class of each kind that a file may name."""

from .light import LightDecoder
from .unet import KINDS, MaskDecoder

DECODERS = {LightDecoder.kind: LightDecoder, **dict.fromkeys(KINDS, MaskDecoder)}
"""Classes by kind, in the order of preference. Each is a `Decoder` with `from_dict(values)`, which builds one with
untrained weights from a file's config, and `as_dict()`, which gives that config."""
