"""The build of the bundled miniature: steps that each read the folder of the one before and can be resumed.

`pack` fetches the art and needs the network once. All steps need the extra `build`.
"""

from .bundling import bundle
from .mask_decoders import adapt, decoders, evaluate, light
from .model import denoiser, dit, grow, pack, recognise, vae
from .settings import SETTINGS, Build, Settings

__all__ = [
    "SETTINGS", "Build", "Settings", "adapt", "bundle", "decoders", "denoiser", "dit", "evaluate", "grow", "light",
    "pack", "recognise", "vae",
]  # fmt: skip
