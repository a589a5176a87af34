"""The miniature for pictures of twice the size, with what it learnt from small ones kept: its UNet and its decoders.

Small pictures teach words and shapes at a fraction of the cost. What worked at the resolution of a small latent goes
on at that resolution, inside a new, finer level (Karras et al., Progressive growing, ICLR 2018).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..decoders.light import LightDecoder, light_config
from ..decoders.unet import MaskDecoder
from ..networks.layers import ResBlock
from ..networks.unet import Block, UNet, UNetConfig

QUIET = 0.1  # of a new block's weights: it computes nearly the identity and can learn


def grown_config(small: UNetConfig) -> UNetConfig:
    """One level finer and one less at the bottom. The finest has no attention, which would cost most of a step: over
    four times the positions, sixteen times. The lowest has none either, as in SD 1.x."""
    return replace(
        small,
        channel_mult=(small.channel_mult[0], *small.channel_mult[:-1]),
        attention_levels=tuple(level + 1 for level in small.attention_levels if level + 2 < len(small.channel_mult)),
    )


def grown(small: UNet) -> UNet:
    """A UNet of `grown_config` that starts as the small one between a soft downsampling and an upsampling."""
    unet = UNet(grown_config(small.config))
    carry_over(small, unet)
    return unet


def grown_mask_decoder(small: MaskDecoder, unet: UNet) -> MaskDecoder:
    """LD-ZNet or ZNet for a grown `unet`. What LD-ZNet reads lies at other blocks now, so it starts by reading
    nothing."""
    config = small.decoder_config
    decoder = MaskDecoder(replace(config, unet=unet.config, grid=2 * config.grid)).init_from(unet)
    carry_over(small, decoder)
    carry(small.final, decoder.final)
    return decoder


@torch.no_grad()
def grown_light(small: LightDecoder, unet: UNet, side: int) -> LightDecoder:
    """A light decoder for a grown `unet` and pictures of `side` pixels. Each level of its pyramid is the next coarser
    one now, and the blocks that it reads are those that grew out of the ones it read."""
    decoder = LightDecoder(light_config(unet.config, side, small.config.width))
    for name, part in small.named_children():
        if name not in ("up", "down"):
            carry(part, getattr(decoder, name))
    carry(small.up, decoder.up[1:])
    carry(small.down, decoder.down[1:])
    soften(decoder.down[0])
    return decoder


@torch.no_grad()
def carry_over(small: UNet, unet: UNet) -> None:
    """Put the weights of the small one where they go on working; the finest level starts nearly as the identity."""
    level = small.config.num_res_blocks + 1  # blocks a level
    for part in ("time_embed", "middle_block", "out"):
        carry(getattr(small, part), getattr(unet, part))
    carry(small.input_blocks[0], unet.input_blocks[0])
    inner = [
        *zip(small.input_blocks[1:], unet.input_blocks[level + 1 :], strict=False),
        *zip(small.output_blocks[level:], unet.output_blocks[:-level], strict=True),
    ]
    for old, new in inner:
        by_kind = {type(layer): layer for layer in old}
        for layer in new:
            if type(layer) in by_kind:
                carry(by_kind[type(layer)], layer)
    for block in (*unet.input_blocks[1:level], *unet.output_blocks[-level:]):
        quieten(block)
    soften(unet.input_blocks[level][0].op)
    upsampling = unet.output_blocks[-level - 1][-1].conv
    upsampling.weight.copy_(apart(upsampling, torch.tensor([0.0, 1.0, 0.0])))
    upsampling.bias.zero_()


def carry(old: nn.Module, new: nn.Module) -> None:
    """Copy what has the same name and the same shape."""
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    same = {name: value for name, value in old.state_dict().items() if shapes.get(name) == value.shape}
    new.load_state_dict(same, strict=False)


def quieten(block: Block) -> None:
    """Nearly the identity on the first channels that a block of the finest level is given; skips are left out."""
    for layer in block:
        if isinstance(layer, ResBlock):
            layer.out_layers[-1].weight *= QUIET
            layer.out_layers[-1].bias.zero_()
            if isinstance(layer.skip_connection, nn.Conv2d):
                weight = layer.skip_connection.weight  # [out, in, 1, 1]
                weight *= QUIET
                weight[:, : len(weight)] = torch.eye(len(weight))[..., None, None]
                layer.skip_connection.bias.zero_()


def soften(down: nn.Conv2d) -> None:
    """A downsampling 3x3 convolution that averages and keeps channels apart. It gives 1.5 times the average: noise
    loses half of its strength by it."""
    down.weight.copy_(1.5 * apart(down, torch.tensor([0.25, 0.5, 0.25])))
    down.bias.zero_()


def apart(layer: nn.Conv2d, kernel: Tensor) -> Tensor:
    """A weight [C, C, 3, 3] that applies a separable kernel [3] to each channel alone."""
    return torch.eye(len(layer.weight))[..., None, None] * kernel[:, None] * kernel
