"""The KL-regularised autoencoder of latent diffusion (AutoencoderKL), with LDM's state-dict names.

Eight pixels a side become one latent position. Knows nothing of pictures beyond tensors in -1..1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Upsample, attention


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes; the defaults are Stable Diffusion's."""

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 4


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.norm2 = norm(in_channels), norm(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """One head of self-attention over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (t.flatten(2).transpose(1, 2)[:, None] for t in (self.q(h), self.k(h), self.v(h)))
        h = attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[-2:])  # [B, C, h, w]
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # LDM pads on the right and below only


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution; `downsample` or `upsample` is set where the resolution changes after them."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int):
        super().__init__()
        widths = [in_channels, *[out_channels] * blocks]
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for before, after in zip([config.channels, *widths], widths, strict=False):
            level = Level(before, after, config.num_res_blocks)
            if len(self.down) < len(widths) - 1:
                level.downsample = Downsample(after)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for i in reversed(range(len(widths))):
            level = Level(widths[min(i + 1, len(widths) - 1)], widths[i], config.num_res_blocks + 1)
            if i:
                level.upsample = Upsample(widths[i])
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # LDM numbers the levels from the finest
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """Images [B, 3, 8h, 8w] in -1..1 to latents [B, 4, h, w] and back.

    Latents here are unscaled, as ComfyUI's LATENT is; the diffusion model sees them times `SCALE`.
    """

    SCALE = 0.18215  # Stable Diffusion's latent_format

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, each [B, 4, h, w]."""
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    @torch.no_grad()
    def normalise(self, mean: Tensor, std: Tensor) -> None:
        """Fold a latent statistic ([4] each) into the outermost 1x1 convolutions, so that latents times `SCALE`
        have zero mean and unit variance while the autoencoder computes what it did before."""
        gain = 1 / (std * self.SCALE)  # [4]
        c = len(gain)
        for rows, shift in ((slice(0, c), -mean), (slice(c, 2 * c), None)):
            if shift is None:
                self.quant_conv.bias[rows] += 2 * gain.log()  # the log-variance scales along
            else:
                self.quant_conv.weight[rows] *= gain[:, None, None, None]
                self.quant_conv.bias[rows] = (self.quant_conv.bias[rows] + shift) * gain
        weight = self.post_quant_conv.weight[:, :, 0, 0].clone()  # [out, in]
        self.post_quant_conv.bias += weight @ mean
        self.post_quant_conv.weight.copy_((weight / gain)[:, :, None, None])
