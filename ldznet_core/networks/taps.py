"""Names of a UNet's features, and which of them the light decoder reads.

"output_blocks.3" is the map after the spatial transformer of that block, "output_blocks.3@0" the queries of the
cross-attention of its first transformer block. LD-ZNet's maps are `UNetConfig.taps`.
"""

from dataclasses import dataclass

from .unet import UNetConfig

POSITIONS = 8  # a grid with fewer to a side is too coarse to tell things apart
MOST_LEVELS = 3
PHRASE_LEVELS = 2


@dataclass(frozen=True)
class Source:
    """A feature that is read. `tap` names it; `channels` and `level` (0: the latent's grid, 1: half of it, ...) are
    its sizes. `heads` > 0 marks queries, whose attention to the phrase is read too; `as_map` says whether the feature
    itself is."""

    tap: str
    channels: int
    level: int
    heads: int = 0
    as_map: bool = True


def light_sources(unet: UNetConfig, side: int) -> tuple[Source, ...]:
    """What a light decoder reads, in the order in which a pass gives it, of a UNet whose pictures are `side` pixels
    along a side: of each block read the queries, for the attention of phrases, and the map after its transformer.

    These are blocks of the three coarsest levels that have attention and at least `POSITIONS` to a side, or of the
    finest with attention where none has so many; the attention of phrases is read on the finer two. Where there are
    three, the decoder's blocks of the finest are left out, so that the pass ends early: for SD 1.x at 512 px the blocks
    read have 32, 16 and 8 positions to a side, for SDXL at 1024 px 64 and 32. Queries of deep transformers are those of
    the middle.
    """
    last, per_level = len(unet.channel_mult) - 1, unet.num_res_blocks
    offered = sorted({*unet.attention_levels, last})  # the middle block has attention in every UNet
    levels = [level for level in offered if side / 8 / 2**level >= POSITIONS][-MOST_LEVELS:] or offered[:1]
    attended = levels[:PHRASE_LEVELS]
    decoded = levels[1:] if len(levels) == MOST_LEVELS else levels

    def sources(block: str, level: int) -> list[Source]:
        channels = unet.model_channels * unet.channel_mult[level]
        queries = Source(f"{block}@{unet.depth(level) // 2}", channels, level, unet.heads(channels), as_map=False)
        return [*([queries] if level in attended else []), Source(block, channels, level)]

    def blocks(part: str, level: int, first: int, count: int) -> list[Source]:
        if level not in unet.attention_levels:
            return []
        return [source for i in range(count) for source in sources(f"{part}.{first + i}", level)]

    encoder = [one for level in levels for one in blocks("input_blocks", level, level * (per_level + 1) + 1, per_level)]
    middle = sources("middle_block", last) if last in levels else []
    decoder = [
        one
        for level in reversed(decoded)
        for one in blocks("output_blocks", level, (last - level) * (per_level + 1), per_level + 1)
    ]
    return (*encoder, *middle, *decoder)
