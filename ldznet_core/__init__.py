"""LD-ZNet Masks: words to masks with the latent diffusion model that is already loaded.

    from ldznet_core import load_backbone, load_decoder, Segmenter
    masks = Segmenter(load_backbone("mini"), load_decoder("mini"))(image, ["cat", "red apple"])
"""

from importlib import import_module

_HOMES = {
    "InputError": "errors",
    "Segmenter": "segment.decoder",
    "load_backbone": "backbones.load",
    "load_decoder": "decoders.files",
    "load_host": "backbones.load",  # the name that load_backbone had before
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """The public names, found when first used: importing torch takes longer than printing a help text."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
