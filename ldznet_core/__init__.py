"""LD-ZNet Masks: words to masks with the latent diffusion model that is already loaded.

    from ldznet_core import load_backbone, load_decoder, Segmenter
    masks = Segmenter(load_backbone("mini"), load_decoder("mini"))(image, ["cat", "red apple"])
"""

from importlib import import_module

_HOMES = {
    "InputError": "errors.InputError",
    "Segmenter": "segment.decoder.Segmenter",
    "load_backbone": "backbones.load.load_backbone",
    "load_decoder": "decoders.files.load_decoder",
    "load_host": "backbones.load.load_backbone",  # the name that it had before
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """The public names, found when first used: importing torch takes longer than printing a help text."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(import_module(f".{module}", __name__), attribute)
