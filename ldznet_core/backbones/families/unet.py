"""UNets of latent diffusion: which of their attention layers are read.

Which feature maps a decoder reads is the UNet's own rule, `networks.unet.UNetConfig.taps`.
"""

import math

from ...networks.unet import UNetConfig
from ..queries import Layer, Plan, grid

POSITIONS = 12  # a grid with fewer to a side is too coarse to place a thing
SHARES = ((1.0,), (0.7, 0.3))  # of the coarser and the finer grid (iSeg, 2024)
LARGEST = 5000  # positions of a self-attention that is kept: its map has that many squared values


def plan(config: UNetConfig, height: int, width: int) -> Plan:
    """The layers to record for latents of `height` x `width` positions.

    Cross-attention places things best on the two coarsest grids that still have `POSITIONS` to a side: 16 and 32 for
    SD 1.x at 512 px, 32 and 64 for SDXL at 1024. Self-attention is read in the decoder, on the finest grid of bearable
    size. Of deep transformers the middle block is recorded.
    """
    levels = sorted(config.attention_levels)
    side = math.sqrt(height * width)
    placing = [level for level in levels if side / 2**level >= POSITIONS] or levels[:1]
    chosen = placing[:-3:-1]
    bearable = [level for level in levels if grid(height, level) * grid(width, level) <= LARGEST]
    own = None
    if bearable:
        decoder = [layer for layer in layers(config, bearable[0]) if layer.block.startswith("output")]
        own = decoder[len(decoder) // 2]
    groups = zip(SHARES[len(chosen) - 1], (layers(config, level) for level in chosen), strict=True)
    return Plan(tuple(groups), own)


def layers(config: UNetConfig, level: int) -> tuple[Layer, ...]:
    """One layer of every spatial transformer on a level, encoder first."""
    per_level, levels = config.num_res_blocks, len(config.channel_mult)
    encoder = (f"input_blocks.{level * (per_level + 1) + 1 + i}" for i in range(per_level))
    decoder = (f"output_blocks.{(levels - 1 - level) * (per_level + 1) + i}" for i in range(per_level + 1))
    return tuple(Layer(block, config.depth(level) // 2, level) for block in (*encoder, *decoder))
