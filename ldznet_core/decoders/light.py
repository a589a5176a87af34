"""The light decoder: a few megabytes on frozen features and attention of the backbone, for any number of phrases.

The image side runs once an image: latent and feature maps become a pyramid and a pixel embedding. The phrase
side runs on the pyramid's coarse levels only: attention of the phrase, cross-attention to its tokens, and weights that
the pixel embedding is multiplied by.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.layers import CrossAttention, timestep_embedding
from ..networks.taps import Source, light_sources
from ..networks.unet import UNetConfig
from .base import DecoderInfo

TIME = 64  # width of the sinusoids of a timestep
DROP_ALL, DROP_ONE = 0.15, 0.1  # shares of training steps without any feature, and of features left out one by one
CLAMP = 12.0  # log-odds of attention beyond this tell nothing more


@dataclass(frozen=True)
class LightConfig:
    """Sizes of a light decoder: which features it reads of which UNet, the width of its pyramid and the channels of
    its pixel embedding. The phrase side works on `phrase_levels`, coarsest first."""

    unet: UNetConfig
    sources: tuple[Source, ...]
    width: int = 128
    pixel_channels: int = 32
    phrase_levels: tuple[int, ...] = (2, 1)

    @property
    def levels(self) -> int:
        """Levels of the pyramid."""
        return 1 + max((*self.phrase_levels, *(source.level for source in self.sources)))

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "LightConfig":
        unet = UNetConfig.from_dict(values["unet"])
        sources = tuple(Source(**source) for source in values["sources"])
        return cls(**{**values, "unet": unet, "sources": sources, "phrase_levels": tuple(values["phrase_levels"])})


def light_config(unet: UNetConfig, side: int, width: int = 128) -> LightConfig:
    """A light decoder for a UNet whose pictures are `side` pixels along a side: it reads `light_sources`."""
    sources = light_sources(unet, side)
    attending = {source.level for source in sources if source.heads}
    return LightConfig(unet, sources, width, phrase_levels=tuple(sorted(attending, reverse=True)))


def heads_of(width: int) -> int:
    return max(1, width // 32)


class ResBlock(nn.Module):
    """x + two 3x3 convolutions, the first scaled and shifted by a vector where one is given."""

    def __init__(self, width: int, vector: int = 0):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.modulate = nn.Linear(vector, 2 * width) if vector else None
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)
        if vector:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        h = self.first(F.silu(self.norm(x)))
        if vector is not None:
            scale, shift = self.modulate(vector)[..., None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return x + self.second(F.silu(h))


class Reader(nn.Module):
    """A feature [B, C, h, w], each position normalised over its channels, as `width` channels of the pyramid."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, width)
        nn.init.zeros_(self.project.weight)  # the decoder begins with the latent alone and learns what to add
        nn.init.zeros_(self.project.bias)

    def forward(self, feature: Tensor) -> Tensor:
        return self.project(self.norm(feature.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class PhraseBlock(nn.Module):
    """One level of the phrase side: the pyramid and the phrase's attention, told what the phrase is."""

    def __init__(self, width: int, attention: int):
        super().__init__()
        # No normalisation: the level of the attention says whether the thing is there at all.
        self.attention = nn.Conv2d(attention, width, 1) if attention else None
        if attention:
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)
        self.res = ResBlock(width, vector=width)
        self.norm, self.cross = nn.GroupNorm(math.gcd(8, width), width), CrossAttention(width, width, heads_of(width))
        self.out = ResBlock(width, vector=width)

    def forward(self, x: Tensor, attention: Tensor | None, tokens: Tensor, vector: Tensor) -> Tensor:
        if attention is not None:
            x = x + self.attention(attention)
        x = self.res(x, vector)
        h = self.cross(self.norm(x).flatten(2).transpose(1, 2), tokens)
        x = x + h.transpose(1, 2).unflatten(2, x.shape[-2:])
        return self.out(x, vector)


class LightDecoder(nn.Module):
    """Logits of phrases' masks: (z [B, 4, h, w], context [N, 77, D], features) -> [N, 1, 8h, 8w], N / B phrases an
    image, image-major.

    `features` are those named by `taps`, each [B, C, h_i, w_i], then for each source of queries the attention of the
    phrases [N, 2 heads, h_i, w_i], as `segment.features` computes it. As a `Decoder` it declares what it reads.
    """

    kind, reads, tells_presence = "light", "latent", True
    timestep = 50  # fine grids lose small things in more noise

    def __init__(self, config: LightConfig):
        super().__init__()
        self.config, width = config, config.width
        self.info: DecoderInfo | None = None
        self.taps = tuple(source.tap for source in config.sources)
        self.attending = tuple(source for source in config.sources if source.heads)
        self.attends = tuple(source.tap for source in self.attending)
        self.time = nn.Sequential(nn.Linear(TIME, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Conv2d(config.unet.in_channels, width, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(config.levels - 1))
        self.readers = nn.ModuleList(
            Reader(source.channels, width) if source.as_map else nn.Identity() for source in config.sources
        )
        self.up = nn.ModuleList(ResBlock(width, vector=width) for _ in range(config.levels))
        self.fine = ResBlock(width)
        half = 2 * config.pixel_channels
        self.to_half = nn.Sequential(nn.Conv2d(width, 4 * half, 1), nn.PixelShuffle(2), nn.SiLU())
        self.to_pixels = nn.Sequential(nn.Conv2d(half, 4 * config.pixel_channels, 3, padding=1), nn.PixelShuffle(2))
        self.text, self.text_norm = nn.Linear(config.unet.context_dim, width), nn.LayerNorm(width)
        self.pool = nn.Linear(width, 1)
        channels = {
            level: sum(2 * source.heads for source in self.attending if source.level == level)
            for level in config.phrase_levels
        }
        self.attention_scale = nn.ParameterList(
            nn.Parameter(torch.full((2 * source.heads, 1, 1), 0.3)) for source in self.attending
        )
        self.phrase = nn.ModuleList(PhraseBlock(width, channels[level]) for level in config.phrase_levels)
        self.weights = nn.Conv2d(width, config.pixel_channels + 1, 1)
        self.presence = nn.Sequential(nn.Linear(4 * width, width), nn.SiLU(), nn.Linear(width, 1))

    @classmethod
    def from_dict(cls, values: dict) -> "LightDecoder":
        """An untrained decoder of the config that `as_dict` gave."""
        return cls(LightConfig.from_dict(values))

    def as_dict(self) -> dict:
        return self.config.as_dict()

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.info.conditions if self.info else ("empty",)

    @property
    def backbone_config(self) -> UNetConfig:
        return self.config.unet

    def forward(
        self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps: Tensor | None = None
    ) -> Tensor:
        return self.predict(z, context, features, timesteps)[0]

    def predict(
        self, z: Tensor, context: Tensor, features: Sequence[Tensor] | None = None, timesteps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of masks [N, 1, 8h, 8w], and logits [N] of whether each phrase names anything. `timesteps` [B] says
        how noisy the latents were that the features were read of."""
        features = list(features or ())
        if len(features) != len(self.taps) + len(self.attending):
            raise ValueError(
                f"the light decoder takes {len(self.taps)} features and {len(self.attending)} maps of attention, "
                f"got {len(features)} tensors"
            )
        maps, attention = features[: len(self.taps)], features[len(self.taps) :]
        pyramid = self.pyramid(z, maps, timesteps)
        return self.answer(pyramid, self.pixels(pyramid[0]), context, attention)

    # ---- once an image ----

    def pyramid(self, z: Tensor, maps: Sequence[Tensor], timesteps: Tensor | None) -> list[Tensor]:
        """Levels [B, width, h_i, w_i], finest first."""
        if timesteps is None:
            timesteps = torch.zeros(len(z), device=z.device)
        time = self.time(timestep_embedding(timesteps, TIME).to(z))
        levels = [self.stem(z)]
        for down in self.down:
            levels.append(down(F.silu(levels[-1])))
        kept = self.kept(maps)
        for source, reader, one, keep in zip(self.config.sources, self.readers, maps, kept, strict=True):
            if source.as_map and keep:
                levels[source.level] = levels[source.level] + reader(one)
        x = None
        for level in range(len(levels) - 1, -1, -1):
            if x is not None:
                size = levels[level].shape[-2:]
                levels[level] = levels[level] + F.interpolate(x, size, mode="bilinear", align_corners=False)
            x = levels[level] = self.up[level](levels[level], time)
        return levels

    def kept(self, sources: Sequence) -> list[bool]:
        """Which features a step reads: all, except in training."""
        if not self.training:
            return [True] * len(sources)
        if float(torch.rand(())) < DROP_ALL:
            return [False] * len(sources)
        return (torch.rand(len(sources)) >= DROP_ONE).tolist()

    def pixels(self, finest: Tensor) -> Tensor:
        """The pixel embedding [B, E, 4h, 4w]."""
        return self.to_pixels(self.to_half(self.fine(finest)))

    # ---- once a phrase ----

    def answer(
        self, pyramid: Sequence[Tensor], pixels: Tensor, context: Tensor, attention: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        each = len(context) // len(pixels)
        tokens = self.text_norm(self.text(context))  # [N, 77, width]
        vector = (self.pool(tokens).softmax(1) * tokens).sum(1)  # [N, width]
        kept = self.kept(attention)
        x = None
        for block, level in zip(self.phrase, self.config.phrase_levels, strict=True):
            base = pyramid[level].repeat_interleave(each, 0)
            if x is not None:
                base = base + F.interpolate(x, base.shape[-2:], mode="bilinear", align_corners=False)
            here = [
                scale * one.clamp(-CLAMP, CLAMP) * keep
                for source, scale, one, keep in zip(self.attending, self.attention_scale, attention, kept, strict=True)
                if source.level == level
            ]
            x = block(base, torch.cat(here, 1) if here else None, tokens, vector)
        weights, level = self.weights(x).split([self.config.pixel_channels, 1], 1)
        level = F.interpolate(level, pixels.shape[-2:], mode="bilinear", align_corners=False)
        logits = stretched_product(weights, pixels) + level  # [N, 1, 4h, 4w]
        present = self.presence(torch.cat([x.mean((2, 3)), x.amax((2, 3)), vector, where_likely(x, logits)], 1))[:, 0]
        return F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False), present


def stretched_product(weights: Tensor, pixels: Tensor) -> Tensor:
    """Products over channels [N, 1, f h, f w] of pixels [B, C, f h, f w] and weights [N, C, h, w] of N / B phrases an
    image, image-major, that are stretched to their size, bilinearly.

    Between four positions of `weights` lies a block of f x f pixels. Each pixel is multiplied by the four and the
    products are stretched, so that no weights of the pixels' size are made. Sizes that are no such multiple need them.
    """
    batch, channels, (h, w) = len(pixels), pixels.shape[1], weights.shape[-2:]
    f = pixels.shape[-1] // w
    if pixels.shape[-2:] != (f * h, f * w):
        stretched = F.interpolate(weights, pixels.shape[-2:], mode="bilinear", align_corners=False)
        return (stretched.unflatten(0, (batch, -1)) * pixels[:, None]).sum(2).flatten(0, 1)[:, None]
    before, after = f - f // 2, f // 2  # pixels outside the outer positions complete a block there
    blocks = F.pad(pixels, (before, after, before, after)).unfold(2, f, f).unfold(3, f, f)  # [B, C, h + 1, w + 1, f, f]
    blocks = blocks.permute(0, 2, 3, 4, 5, 1).reshape(-1, f * f, channels)
    edged = F.pad(weights, (1, 1, 1, 1), mode="replicate").unflatten(0, (batch, -1))  # [B, N / B, C, h + 2, w + 2]
    corners = edged.unfold(3, 2, 1).unfold(4, 2, 1)  # [B, N / B, C, h + 1, w + 1, 2, 2]
    corners = corners.permute(0, 3, 4, 2, 1, 5, 6).reshape(len(blocks), channels, -1)
    products = (blocks @ corners).unflatten(2, (-1, 4))  # [B (h + 1) (w + 1), f f, N / B, 4]
    along = (torch.arange(f, device=pixels.device) + (0.5 if f % 2 == 0 else 0.0)) / f
    along = torch.stack([1 - along, along], 1)  # [f, 2]
    shares = torch.einsum("yi,xj->yxij", along, along).reshape(f * f, 1, 4).to(products)
    products = (products * shares).sum(-1).unflatten(1, (f, f)).unflatten(0, (batch, h + 1, w + 1))
    whole = products.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3).flatten(0, 1)  # [N, f (h + 1), f (w + 1)]
    return whole[:, None, before : before + f * h, before : before + f * w]


def where_likely(x: Tensor, logits: Tensor) -> Tensor:
    """The mean [N, C] of x [N, C, h, w], weighted by how likely each position is the mask's: logits [N, 1, H, W]."""
    share = F.adaptive_avg_pool2d(logits, x.shape[-2:]).flatten(1).softmax(1)  # [N, h w]
    return torch.einsum("ncp,np->nc", x.flatten(2), share)
