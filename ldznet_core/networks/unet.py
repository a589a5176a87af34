"""The UNet of latent diffusion (Rombach et al., 2022) in plain torch, with LDM's state-dict names.

One implementation serves the bundled denoiser and, with another head, ZNet and LD-ZNet (`decoder.py`).
It can stop after the last map that is asked for: half of an SD 1.x pass is never needed for a mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import Downsample, ResBlock, SpatialTransformer, Upsample, timestep_embedding


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet. The defaults are SD 1.x; `SD2` and `SDXL` are below.

    `attention_levels` counts resolutions from the finest (0). `transformer_depth` is one number, or one a level (0
    where there is no attention); the middle block is as deep as the lowest level with attention. `feature_grid` > 0
    (the side of the latent that the network is trained on, 48 for the authors' 384 px) makes the tapped blocks read a
    feature map each.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    num_heads: int = 8
    head_channels: int = 0  # 0: `num_heads` heads everywhere; else heads of this many channels
    context_dim: int = 768
    transformer_depth: int | tuple[int, ...] = 1
    use_linear: bool = False
    vector_channels: int = 0  # of what is added to the time embedding: SDXL's pooled text and picture sizes
    feature_grid: int = 0

    @classmethod
    def from_dict(cls, values: dict) -> "UNetConfig":
        """The config that `dataclasses.asdict` gave, as it comes back from JSON."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def heads(self, channels: int) -> int:
        return channels // self.head_channels if self.head_channels else self.num_heads

    def depth(self, level: int) -> int:
        """Transformer blocks in each spatial transformer of this level; below the last with attention, the middle's."""
        level = min(level, max(self.attention_levels))
        return self.transformer_depth if isinstance(self.transformer_depth, int) else self.transformer_depth[level]

    @property
    def transformers(self) -> tuple[str, ...]:
        """All blocks with a spatial transformer, in the order of a pass: 16 in SD 1.x and 2.x, 11 in SDXL."""
        per_level, lowest, levels = self.num_res_blocks, len(self.channel_mult) - 1, sorted(self.attention_levels)
        encoder = [f"input_blocks.{level * (per_level + 1) + 1 + i}" for level in levels for i in range(per_level)]
        starts = [(lowest - level) * (per_level + 1) for level in levels[::-1]]
        decoder = [f"output_blocks.{start + i}" for start in starts for i in range(per_level + 1)]
        return (*encoder, "middle_block", *decoder)

    @property
    def taps(self) -> tuple[str, ...]:
        """The maps that carry meaning (paper, blocks 6-10): right after the spatial transformers of the encoder's
        last attention block, the middle block, and the decoder's blocks at that same resolution."""
        level, per_level = max(self.attention_levels), self.num_res_blocks
        last = level * (per_level + 1) + per_level
        first = (len(self.channel_mult) - 1 - level) * (per_level + 1)
        decoder = range(first, first + per_level + 1)
        return (f"input_blocks.{last}", "middle_block", *(f"output_blocks.{i}" for i in decoder))

    def pool_grid(self, tap: str, level: int) -> int:
        """Side of the feature map that this block's attention pool is made for; 0 where it takes none."""
        return self.feature_grid // 2**level if tap in self.taps else 0


SD2 = UNetConfig(context_dim=1024, head_channels=64, use_linear=True)
SDXL = UNetConfig(
    channel_mult=(1, 2, 4), attention_levels=(1, 2), transformer_depth=(0, 2, 10), context_dim=2048,
    head_channels=64, use_linear=True, vector_channels=2816,
)  # fmt: skip


def native_side(config: UNetConfig, prediction: str) -> int:
    """Pixels along a side of the squares that Stable Diffusion's families were trained on."""
    if config.vector_channels:
        return 1024
    return 768 if config.context_dim == SD2.context_dim and prediction == "v" else 512


def embedder(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, out), nn.SiLU(), nn.Linear(out, out))


class Block(nn.ModuleList):
    """Layers run in order; each is handed what its kind takes."""

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, feature: Tensor | None = None) -> Tensor:
        return self.run(x, embedding, context, feature)[0]

    def run(self, x, embedding, context, feature=None, stop: bool = False) -> tuple[Tensor, Tensor | None]:
        """Output of the block, and the map right after its spatial transformer, where it ends with `stop`."""
        tapped = None
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = tapped = layer(x, context, feature)
                if stop:
                    break
            else:
                x = layer(x)
        return x, tapped


class UNet(nn.Module):
    """eps or v of a noised latent: ([B, 4, h, w], timesteps [B], context [B, N, D]) -> [B, 4, h, w].

    h and w must be multiples of 2 ** (number of levels - 1): 8 for SD 1.x and 2.x, 4 for SDXL. A UNet with
    `vector_channels` also needs `vector` [B, vector_channels], another takes none: ValueError. With `checkpointing`
    training keeps the inputs of blocks only and computes each block once more for its gradient.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config, self.checkpointing = config, False
        c, ch = config, config.model_channels
        self.time_embed = embedder(ch, ch * 4)
        if c.vector_channels:
            self.label_emb = nn.Sequential(embedder(c.vector_channels, ch * 4))

        def transformer(channels: int, tap: str, level: int) -> SpatialTransformer:
            return SpatialTransformer(
                channels, c.context_dim, c.heads(channels), c.depth(level), c.use_linear, c.pool_grid(tap, level)
            )

        def name(kind: str, blocks: Sequence) -> str:
            return f"{kind}.{len(blocks)}"

        widths = [ch]
        self.input_blocks = nn.ModuleList([Block([nn.Conv2d(c.in_channels, ch, 3, padding=1)])])
        current = ch
        for level, mult in enumerate(c.channel_mult):
            for _ in range(c.num_res_blocks):
                layers: list[nn.Module] = [ResBlock(current, mult * ch, ch * 4)]
                current = mult * ch
                if level in c.attention_levels:
                    layers.append(transformer(current, name("input_blocks", self.input_blocks), level))
                self.input_blocks.append(Block(layers))
                widths.append(current)
            if level < len(c.channel_mult) - 1:
                self.input_blocks.append(Block([Downsample(current)]))
                widths.append(current)

        bottom = len(c.channel_mult) - 1
        self.middle_block = Block([
            ResBlock(current, current, ch * 4),
            transformer(current, "middle_block", bottom),
            ResBlock(current, current, ch * 4),
        ])

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(c.channel_mult))):
            for i in range(c.num_res_blocks + 1):
                layers = [ResBlock(current + widths.pop(), mult * ch, ch * 4)]
                current = mult * ch
                if level in c.attention_levels:
                    layers.append(transformer(current, name("output_blocks", self.output_blocks), level))
                if level and i == c.num_res_blocks:
                    layers.append(Upsample(current))
                self.output_blocks.append(Block(layers))

        self.out = nn.Sequential(
            nn.GroupNorm(32, current), nn.SiLU(), nn.Conv2d(current, c.out_channels, 3, padding=1)
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, taps: Sequence[str] = (), vector: Tensor | None = None
    ):
        """The prediction; with `taps`, a pair of the prediction and the tapped maps in the order of `taps`."""
        found: dict[str, Tensor] = {}
        h = self.out(self.trunk(x, timesteps, context, found=found if taps else None, vector=vector))
        return (h, [found[tap] for tap in taps]) if taps else h

    def extract(
        self, x: Tensor, timesteps: Tensor, context: Tensor, taps: Sequence[str], vector: Tensor | None = None
    ) -> list[Tensor]:
        """The tapped maps alone; computes nothing past the last of them."""
        found: dict[str, Tensor] = {}
        self.trunk(x, timesteps, context, found=found, wanted=frozenset(taps), vector=vector)
        return [found[tap] for tap in taps]

    def trunk(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        features: Mapping[str, Tensor] | None = None,
        found: dict[str, Tensor] | None = None,
        wanted: frozenset[str] | None = None,
        vector: Tensor | None = None,
    ) -> Tensor | None:
        """Everything before the head. `features` are read by the blocks of those names, maps after spatial
        transformers are put in `found`; once all of `wanted` are there, the pass ends and gives None."""
        embedding = timestep_embedding(timesteps, self.config.model_channels).to(x.dtype)
        embedding = self.time_embed(embedding)
        if (vector is None) == bool(self.config.vector_channels):
            given = "none" if vector is None else list(vector.shape)
            raise ValueError(f"this UNet takes a vector of {self.config.vector_channels} channels, got {given}")
        if vector is not None:
            embedding = embedding + self.label_emb(vector.to(x.dtype))
        features = features or {}
        skips: list[Tensor] = []
        h = x
        for name, block in self.blocks():
            if name.startswith("output_blocks"):
                h = torch.cat([h, skips.pop()], dim=1)
            last = wanted is not None and wanted <= {*found, name}
            inputs = (h, embedding, context, features.get(name), last)
            if self.checkpointing and torch.is_grad_enabled():
                h, tapped = checkpoint(block.run, *inputs, use_reentrant=False)
            else:
                h, tapped = block.run(*inputs)
            if name.startswith("input_blocks"):
                skips.append(h)
            if found is not None and tapped is not None:
                found[name] = tapped
            if last:
                return None
        return h

    def blocks(self):
        """(name, block) in the order of computation."""
        yield from ((f"input_blocks.{i}", block) for i, block in enumerate(self.input_blocks))
        yield "middle_block", self.middle_block
        yield from ((f"output_blocks.{i}", block) for i, block in enumerate(self.output_blocks))
