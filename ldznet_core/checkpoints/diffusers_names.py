"""Where the tensors of diffusers' UNet stand in a UNet of latent diffusion: two names for the same weights."""

import re

# Parts of a residual block, diffusers' name to LDM's.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def ldm_name(name: str, num_res_blocks: int, attention: frozenset[str]) -> str:
    """LDM's name of a tensor of diffusers' UNet. `attention` holds the blocks that have it, such as "up_blocks.1".

    Raises KeyError for a tensor that the UNets of SD 1.x, 2.x and SDXL do not have.
    """
    if match := MIDDLE.fullmatch(name):
        part, number, rest = match.groups()
        return f"middle_block.{1 if part == 'attentions' else 2 * int(number)}.{inside(part, rest)}"
    if match := BLOCK.fullmatch(name):
        way, level, part, number, rest = match.groups()
        first, each = int(level) * (num_res_blocks + 1), num_res_blocks + 1
        if part == "downsamplers":
            return f"input_blocks.{first + each}.0.{rest.replace('conv', 'op', 1)}"
        if part == "upsamplers":
            place = 2 if f"up_blocks.{level}" in attention else 1
            return f"output_blocks.{first + num_res_blocks}.{place}.{rest}"
        blocks, block = ("input_blocks", 1 + first) if way == "down" else ("output_blocks", first)
        return f"{blocks}.{block + int(number)}.{int(part == 'attentions')}.{inside(part, rest)}"
    module, _, kind = name.rpartition(".")
    return f"{OUTSIDE[module]}.{kind}"


def inside(part: str, rest: str) -> str:
    """The name inside a block; those of transformers are the same in both."""
    if part == "attentions":
        return rest
    module, _, kind = rest.rpartition(".")
    return f"{RESNET[module]}.{kind}"
