"""What a backbone is, and what those here have in common: feature maps recorded in one pass that ends early."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks.schedule import noise_like
from ..networks.unet import UNetConfig
from .recording import Features, Text, record, tapped

TEXTS_KEPT = 16  # 2 MB each for eight phrases of SD 1.x
# What a backbone may be able to do, and what that takes.
CAPABILITIES = {
    "features": "feature maps of a UNet for a decoder",
    "queries": "queries of attention layers",
    "joint": "attention of a transformer's image to its text",
    "denoise": "estimates of the clean latent",
    "sample": "pictures of its own",
}


class Backbone(Protocol):
    """Who owns the VAE, the text encoder and the denoiser. Latents are scaled, as the denoiser reads them.

    `name` is how errors name it; `prediction` "eps", "v" or "edm"; `channels` those of its latents; `native_area` the
    area in pixels of the images that the model was trained on; `stride` the pixels along a side of one position of a
    latent; `capabilities` some of `CAPABILITIES`. What a backbone
    lacks is refused by `require`; `features` and `queries` need `unet_config`, `transformer`, `observe` and `project`,
    `joint` needs `family`, `patch`, `grid`, `concepts` and `attend`.
    """

    name: str
    prediction: str
    channels: int
    native_area: int
    stride: int
    unet_config: UNetConfig
    capabilities: frozenset[str]

    def encode(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Images [B, H, W, 3] in 0..1, sides multiples of 8, to latents [B, C, H/8, W/8]: the mean of the VAE's
        posterior or, with a seed, a sample of it. Raises InputError for a seed where no sample can be had."""

    def embed(self, texts: Sequence[str]) -> Text:
        """Texts encoded for this backbone, one row each."""

    def ready(self, decoder: nn.Module, z: Tensor) -> nn.Module:
        """The decoder where it can run on `z`."""

    def transformer(self, block: str) -> nn.Module:
        """The spatial transformer of a block of the UNet, by LDM's name of the block."""

    def observe(
        self, z: Tensor, text: Text, modules: dict[str, nn.Module], *, timestep: int, seed: int = 0
    ) -> dict[str, Tensor]:
        """The outputs of parts of the UNet for `z` [B, C, h, w] noised to `timestep`, by name, in one pass that ends
        at the last of them. Raises InputError where they are not finite."""

    def extract(
        self,
        z: Tensor,
        text: Text,
        taps: Sequence[str],
        *,
        timestep: int = 400,
        seed: int = 0,
        conditioning: str = "phrase",
    ) -> Features:
        """What `taps` name, of `z` noised to `timestep`. `conditioning` says what `text` is: "phrase", "caption" or
        "empty"."""

    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        """A context [B, N, D] through linear layers of the UNet."""

    def denoise(self, z: Tensor, text: Text, *, timestep: int, seed: int = 0) -> Tensor:
        """The estimate of the clean latent [B, C, h, w] in `z` noised to `timestep`, a text a row. Raises InputError
        where it is not finite."""


def require(backbone: Backbone, capability: str) -> None:
    """Raises InputError, naming both, where a backbone cannot do what a method needs."""
    if capability not in backbone.capabilities:
        able = ", ".join(CAPABILITIES[name] for name in CAPABILITIES if name in backbone.capabilities)
        raise InputError(
            f"{backbone.name} gives no {CAPABILITIES[capability]}: choose a method that works with {able}"
        )


class BaseBackbone:
    """For backbones that give `name`, `transformer` and `observe`."""

    stride = 8

    @torch.inference_mode()
    def extract(
        self,
        z: Tensor,
        text: Text,
        taps: Sequence[str],
        *,
        timestep: int = 400,
        seed: int = 0,
        conditioning: str = "phrase",
    ) -> Features:
        modules = {tap: tapped(self.transformer, tap) for tap in taps}
        outputs = self.observe(z, text, modules, timestep=timestep, seed=seed)
        if len(outputs) < len(taps):
            raise InputError(f"{self.name} ran without passing {', '.join(t for t in taps if t not in outputs)}")
        return Features(tuple(outputs[tap] for tap in taps), tuple(taps), timestep, conditioning)

    def check_finite(self, outputs: Iterable[Tensor], timestep: int) -> None:
        """Raises InputError where a pass put out NaN or infinity: a mask of them would say "nothing there"."""
        if not all(output.isfinite().all() for output in outputs):
            raise InputError(
                f"{self.name} computes values that are not finite (NaN or infinity) at timestep {timestep}: "
                "run it in float32, or take away what changes its sampling"
            )


class TorchBackbone(BaseBackbone):
    """For backbones whose networks stay on one `device`; they also give `encode_texts`, `schedule`, `unet_config`,
    `predict(z_t, timesteps, text)`, `ldm_unet()` (the UNet under LDM's names), `networks` (VAE, text encoders and UNet
    by name) and `scale`, which multiplies what the VAE gives."""

    capabilities = frozenset(("features", "queries", "denoise"))

    @property
    def channels(self) -> int:
        return self.unet_config.out_channels

    def ready(self, decoder: nn.Module, z: Tensor) -> nn.Module:
        return decoder.to(self.device)

    @cached_property
    def known_texts(self) -> OrderedDict[tuple, Text]:
        """What `embed` last encoded. Empty it where the text encoder has changed."""
        return OrderedDict()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Text:
        """As `encode_texts`; the last `TEXTS_KEPT` lists of texts are not encoded again."""
        known, key = self.known_texts, (tuple(texts), torch.is_autocast_enabled(self.device.type))
        if key not in known:
            known[key] = self.encode_texts(texts)
            if len(known) > TEXTS_KEPT:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    @torch.inference_mode()
    def observe(
        self, z: Tensor, text: Text, modules: dict[str, nn.Module], *, timestep: int, seed: int = 0
    ) -> dict[str, Tensor]:
        with record(modules, stop=True) as outputs:
            self.predict(*self.noised(z, timestep, seed), text)
        self.check_finite(outputs.values(), timestep)
        return outputs

    @torch.inference_mode()
    def denoise(self, z: Tensor, text: Text, *, timestep: int, seed: int = 0) -> Tensor:
        z_t, timesteps = self.noised(z, timestep, seed)
        clean = self.schedule.split(self.predict(z_t, timesteps, text), z_t, timesteps)[0]
        self.check_finite([clean], timestep)
        return clean

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        return [layer(context) for layer in layers]

    def noised(self, z: Tensor, timestep: int, seed: int) -> tuple[Tensor, Tensor]:
        """Latents [B, C, h, w] noised to `timestep`, and that timestep for each row."""
        timesteps = torch.full((len(z),), timestep, device=self.device)
        z = z.to(self.device)
        return self.schedule.add_noise(z, noise_like(z, seed), timesteps), timesteps
