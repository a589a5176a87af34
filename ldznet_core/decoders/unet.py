"""The mask decoders of LD-ZNet (PNVR et al., ICCV 2023, section 3): a diffusion UNet with a mask head.

ZNet reads the clean latent at timestep 0. LD-ZNet also reads the feature maps of the backbone's UNet in its five
tapped blocks. RGBNet, the paper's baseline, reads pixels through a stem of its own. Parameter names are the authors'.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ..networks.unet import UNet, UNetConfig
from .base import DecoderInfo


@dataclass(frozen=True)
class Input:
    """What a kind of decoder reads: "latent" or "pixels", and whether the backbone's feature maps as well."""

    reads: str
    features: bool = False


KINDS = {"ldznet": Input("latent", features=True), "znet": Input("latent"), "rgbnet": Input("pixels")}


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder. `unet` holds those of the backbone's UNet, of which a decoder leaves out `vector_channels`.
    `head_channels` is 1 in the paper: one channel from the latent grid to full resolution. A network that works on
    small grids draws finer edges with a few more."""

    kind: str
    unet: UNetConfig
    grid: int = 48  # side of the training latents; fixes the attention pools' positional embeddings
    head_channels: int = 1

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "DecoderConfig":
        return cls(**{**values, "unet": UNetConfig.from_dict(values["unet"])})


def upsampling_head(channels: int) -> nn.Sequential:
    """Three times (3x3 convolution, SiLU, 2x transposed convolution, SiLU), then one logit a pixel.

    Begins near the identity: with one channel and random weights a SiLU chain can start dead.
    """
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU()]
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.SiLU()]
    layers.append(nn.Conv2d(channels, 1, 3, padding=1))
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.3 / layer.weight[0].numel() ** 0.5)
            nn.init.zeros_(layer.bias)
            for i in range(min(layer.weight.shape[:2])):
                centre = 1 if layer.kernel_size == (3, 3) else slice(None)
                layer.weight.data[i, i, centre, centre] += 1
    return nn.Sequential(*layers)


def pixel_stem(channels: int) -> nn.Sequential:
    """RGB to the latent grid by three strided convolutions: [B, 3, 8h, 8w] -> [B, channels, h, w]."""
    widths, layers = (3, 32, 64, 128), []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 3, padding=1))


class MaskDecoder(UNet):
    """Logits of phrases' masks: (z [B, 4, h, w], context [N, 77, D], features) -> [N, 1, 8h, 8w], N / B phrases an
    image.

    `features` are the maps named by `taps`, in that order, each [B, C, h_i, w_i]; None for ZNet and RGBNet.
    RGBNet takes the image [B, 3, 8h, 8w] in -1..1 in place of z. h and w are multiples of 8. As a `Decoder` it
    declares what it reads; `info` is what its file says, None for one that was just made.
    """

    attends, tells_presence, timestep = (), False, 400

    def __init__(self, config: DecoderConfig):
        takes = KINDS[config.kind]
        grid = config.grid if takes.features else 0
        own = {"out_channels": config.head_channels, "feature_grid": grid, "vector_channels": 0}
        super().__init__(replace(config.unet, **own))
        self.decoder_config = config
        self.info: DecoderInfo | None = None
        self.kind, self.reads = config.kind, takes.reads
        self.taps = config.unet.taps if takes.features else ()
        self.out.append(nn.SiLU())
        self.final = upsampling_head(config.head_channels)
        if takes.reads == "pixels":
            self.stem = pixel_stem(config.unet.in_channels)

    @classmethod
    def from_dict(cls, values: dict) -> "MaskDecoder":
        """An untrained decoder of the config that `as_dict` gave."""
        return cls(DecoderConfig.from_dict(values))

    def as_dict(self) -> dict:
        return self.decoder_config.as_dict()

    @property
    def conditions(self) -> tuple[str, ...]:
        """The texts that conditioned its features in training; of an untrained one the phrase, as in the paper."""
        return self.info.conditions if self.info else ("phrase",)

    @property
    def backbone_config(self) -> UNetConfig:
        """Sizes of the backbone's UNet that it was made for."""
        return self.decoder_config.unet

    def predict(
        self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps: Tensor | None = None
    ) -> tuple[Tensor, None]:
        return self(z, context, features), None

    def forward(
        self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps: Tensor | None = None
    ) -> Tensor:
        each, features = len(context) // len(z), tuple(features or ())
        if each > 1:
            z, *features = (one.repeat_interleave(each, 0) for one in (z, *features))
        if len(features) != len(self.taps):
            raise ValueError(f"{self.kind} takes {len(self.taps)} feature maps {self.taps}, got {len(features)}")
        if self.reads == "pixels":
            z = self.stem(z)
        timesteps = torch.zeros(z.shape[0], device=z.device)  # the latent is clean: always t = 0
        h = self.trunk(z, timesteps, context, dict(zip(self.taps, features, strict=True)))
        return self.final(self.out(h))

    def init_from(self, unet: UNet) -> "MaskDecoder":
        """Copy what the denoiser has by the same name (paper section 3.2); the head takes its first channel.

        The new cross-attention starts at zero, so LD-ZNet begins as ZNet and learns what to add.
        """
        own, denoiser = self.state_dict(), unet.state_dict()
        shared = {k: v for k, v in denoiser.items() if k in own and own[k].shape == v.shape}
        head = {k: own[k].clone() for k in ("out.2.weight", "out.2.bias")}
        for k, value in head.items():
            value[:1] = denoiser[k][:1]
        self.load_state_dict({**shared, **head}, strict=False)
        for block_name, module in self.named_modules():
            if block_name.endswith("attn3"):
                nn.init.zeros_(module.to_out[0].weight)
                nn.init.zeros_(module.to_out[0].bias)
        return self
