"""What differs from kind to kind of decoder: how one is made for a backbone, and the settings it trains well with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..backbones.base import TorchBackbone
from ..decoders.base import CONDITIONS, Decoder
from ..decoders.light import LightDecoder, light_config
from ..decoders.paper_checkpoint import TEMPLATES
from ..decoders.unet import DecoderConfig, MaskDecoder
from ..errors import InputError
from .config import BLOCKS, Config

GRID = 64  # sides of training pictures are multiples of it: the UNets halve the latent three times
SMALL = 256  # side in pixels; models that draw larger pictures are trained on as in the paper
LEAST_STEPS, PASSES = 500, 15  # the paper's checkpoint is of about the fifteenth pass over its data


@dataclass(frozen=True)
class Recipe:
    """`make(config, backbone)` gives an untrained decoder. `settings` are by key; the rate is for one example of a
    batch. `small` replaces some for models that draw pictures of at most 256 pixels. `checkpointing` says whether the
    decoder can compute activations twice to save memory."""

    make: Callable[[Config, TorchBackbone], Decoder]
    settings: Mapping[str, Any]
    small: Mapping[str, Any]
    checkpointing: bool = True


def unet_decoder(config: Config, backbone: TorchBackbone) -> MaskDecoder:
    """A decoder of the paper that starts from the backbone's own UNet (section 3.2); the rest is random."""
    sizes = DecoderConfig(
        config.decoder.kind, backbone.unet_config, config.data.size // 8, config.decoder.head_channels
    )
    return MaskDecoder(sizes).init_from(backbone.ldm_unet())


PAPER = {
    "head_channels": 1, "templates": TEMPLATES, "conditions": {"phrase": 1.0}, "timesteps": (300, 500),
    "crop": True, "absent": 0.0, "phrases": 1, "cache": "none", "batch": 32, "at_once": 4, "rate": 5e-7, "muon": 0.0,
    "ema": 0.9999, "dice": 0.0, "warm_up": 1, "validate": 500,
}  # fmt: skip
SMALL_UNET = {
    "head_channels": 8, "templates": ("{}", "a {}"), "batch": 12, "at_once": 12, "rate": 4e-4 / 12, "muon": 2e-3,
    "ema": 0.995, "dice": 0.5, "warm_up": 100, "validate": 100,
}  # fmt: skip


def light_decoder(config: Config, backbone: TorchBackbone) -> LightDecoder:
    """An untrained light decoder for the features of a backbone."""
    side = round(backbone.native_area**0.5)
    return LightDecoder(light_config(backbone.unet_config, side, SMALL_WIDTH if side <= SMALL else WIDTH))


WIDTH, SMALL_WIDTH = 128, 48
LIGHT = {
    "head_channels": 1, "templates": ("{}", "a {}", "a photo of a {}"), "conditions": {"empty": 0.7, "caption": 0.3},
    "timesteps": (0, 500), "crop": False, "absent": 0.2, "phrases": 4, "cache": "none", "batch": 64, "at_once": 16,
    "rate": 1e-3 / 64, "muon": 5e-3, "ema": 0.998, "dice": 0.5, "warm_up": 100, "validate": 500,
}  # fmt: skip
SMALL_LIGHT = {"templates": ("{}", "a {}"), "batch": 32, "at_once": 32, "rate": 1e-3 / 32}
RECIPES: dict[str, Recipe] = {
    "light": Recipe(light_decoder, LIGHT, SMALL_LIGHT, checkpointing=False),
    **{kind: Recipe(unet_decoder, PAPER, SMALL_UNET) for kind in ("ldznet", "znet", "rgbnet")},
}
"""By kind. The recipe of the paper (section 4 and the authors' configuration) is the default of its kinds; latents are
the posterior's mean, where the authors sample it."""


def training_size(native: int) -> int:
    """The side of training pictures: 384 for a model of 512 pixels, as in the paper, and so for others; small models
    train at their own."""
    return max(GRID, (native if native <= SMALL else native * 3 // 4) // GRID * GRID)


def completed(config: Config, backbone: TorchBackbone, examples: int) -> Config:
    """The configuration with every value that was left open, for a backbone and a number of training examples.

    Raises InputError where values do not go together.
    """
    kind = config.decoder.kind
    if kind not in RECIPES:
        raise InputError(f"there is no decoder of kind {kind!r} to train: choose among {', '.join(RECIPES)}")
    recipe, native = RECIPES[kind], round(backbone.native_area**0.5)
    settings = {**recipe.settings, **(recipe.small if native <= SMALL else {}), "size": training_size(native)}
    per_example = settings.pop("rate")
    batch = config.optimiser.batch or settings["batch"]
    settings |= {"rate": per_example * batch, "at_once": min(batch, settings["at_once"])}
    own_pass = "phrase" in (config.decoder.conditions or settings["conditions"]) or config.data.crop
    settings["phrases"] = 1 if own_pass else math.gcd(batch, settings["phrases"])
    if config.data.cache not in (None, "none"):
        settings["crop"] = False  # a cache holds whole pictures
    if config.schedule.minutes is None:
        settings["steps"] = max(LEAST_STEPS, PASSES * examples // batch)
    for block in BLOCKS:
        own = getattr(config, block)
        open_keys = {one.name for one in fields(own) if getattr(own, one.name) is None}
        config = replace(config, **{block: replace(own, **{k: v for k, v in settings.items() if k in open_keys})})
    check(config)
    return config


def check(config: Config) -> None:
    """Raises InputError where values are out of range or do not go together."""
    decoder, data, optimiser = config.decoder, config.data, config.optimiser
    if data.size % GRID:
        raise InputError(f"size {data.size} is no multiple of {GRID}: take {max(GRID, data.size // GRID * GRID)}")
    if any("{}" not in template for template in decoder.templates):
        raise InputError(f"templates {[*decoder.templates]} must each hold {{}} where the phrase goes")
    if unknown := {*decoder.conditions} - {*CONDITIONS}:
        raise InputError(f"conditions: there is no {sorted(unknown)[0]!r}: choose among {', '.join(CONDITIONS)}")
    low, high = decoder.timesteps
    if not 0 <= low < high <= 1000:
        raise InputError(f"timesteps [{low}, {high}] must rise, from 0 to 1000")
    if not 0 <= data.absent < 1:
        raise InputError(f"absent {data.absent:g} must be less than 1: it is a share")
    if data.phrases > 1 and (data.crop or decoder.conditions.get("phrase") or optimiser.batch % data.phrases):
        raise InputError(
            f"phrases {data.phrases} share a pass: use it without crop, without the condition phrase, and with a batch "
            f"({optimiser.batch}) that is a multiple of it"
        )
    if data.cache not in ("none", "latents", "features"):
        raise InputError(f"cache {data.cache!r}: choose none, latents or features")
    if data.cache != "none" and data.crop:
        raise InputError(f"crop does not go with cache {data.cache}, which holds whole pictures: leave one out")
    if data.cache == "features" and data.absent and decoder.conditions.get("phrase"):
        # Features made under another phrase than the one that is asked would tell that it is absent.
        raise InputError(
            f"absent {data.absent:g} does not go with features that are cached under phrases: use cache latents, or "
            "conditions without phrase"
        )
    if optimiser.checkpointing and not RECIPES[decoder.kind].checkpointing:
        raise InputError(f"a {decoder.kind} decoder is small and has no checkpointing: leave the flag out")
    if optimiser.precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision {optimiser.precision!r}: choose auto, float32 or bfloat16")
    if not optimiser.ema < 1:
        raise InputError(f"ema {optimiser.ema:g} must be less than 1")
    if not optimiser.rate > 0:
        raise InputError("rate must be more than 0")
