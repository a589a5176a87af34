"""LD-ZNet Masks: words to masks with the latent diffusion model that is already loaded.

    from ldznet_core import load_host, load_decoder, Segmenter
    masks = Segmenter(load_host("mini"), load_decoder("mini"))(image, ["cat", "red apple"])
"""

from .errors import InputError
from .hosts.ldm import load_host
from .segmenter import Segmenter
from .weights import load_decoder

__all__ = ["InputError", "Segmenter", "load_decoder", "load_host"]
