"""Diffusion transformers: how each family is recognised and where its image and text meet.

Only what differs between families stands here. Networks are recognised by their parts, not by the names of their
classes, so that a fine-tune or a subclass is read as its family is.
"""

import math
from dataclasses import dataclass

from torch import nn

BLOCKS = 4  # read of each network: their mean is steadier than one, and more tell no more


@dataclass(frozen=True)
class TransformerFamily:
    """One family of diffusion transformers.

    A network belongs to it that has all parts named in `parts` and none of `lacks`. Attention is read in the list of
    blocks `blocks`, in those between the shares `band` of its length. `order` says where image tokens stand in the
    sequence that attention runs over: "text first", "image first", or "cross" where text is not in it and only its
    keys are read, by the part `attention` of a block. `encoder` names the tokens that are the rows of the context,
    where that is not plain from their number; `left_padded` says that the network pads the context at its start.
    `timestep` is how many thousandths of a latent are noise when it is read, `read` what tells where concepts are
    (`segment.joint_maps`).
    """

    name: str
    parts: tuple[str, ...]
    blocks: str
    band: tuple[float, float]
    order: str = "text first"
    lacks: tuple[str, ...] = ()
    attention: str = ""
    encoder: str = ""
    left_padded: bool = False
    timestep: int = 500  # ConceptAttention, Seg4Diff
    read: str = "both"
    most: float = math.inf  # blocks; a larger network is of another family

    def owns(self, network: nn.Module) -> bool:
        if not all(hasattr(network, part) for part in self.parts) or any(hasattr(network, part) for part in self.lacks):
            return False
        blocks = getattr(network, self.blocks)
        first = next(iter(blocks), None)
        # HunyuanVideo has the parts of Flux, and its image comes first.
        known = first is not None and hasattr(first, self.attention or "forward") and not flipped(first)
        return known and len(blocks) <= self.most

    def chosen(self, network: nn.Module) -> tuple[int, ...]:
        """Which of the blocks are read where nobody says otherwise."""
        return spaced(len(getattr(network, self.blocks)), *self.band)

    def modules(self, network: nn.Module, chosen: tuple[int, ...]) -> dict[str, nn.Module]:
        """The modules inside which attention is read, by name."""
        blocks, tail = getattr(network, self.blocks), f".{self.attention}" if self.attention else ""
        return {
            f"{self.blocks}.{i}{tail}": blocks[i].get_submodule(self.attention) if tail else blocks[i] for i in chosen
        }


# Bands are those of the publications where there are any: ConceptAttention (Flux.1), Seg4Diff (Stable Diffusion 3),
# FreeFuse (Flux.2 and Z-Image), IMAP (Wan); else the middle of the network. The narrower families come first.
FAMILIES = (
    TransformerFamily(
        "Flux.2", ("double_blocks", "single_blocks", "double_stream_modulation_img"), "single_blocks", (0.15, 0.33),
        left_padded=True,
    ),
    TransformerFamily(
        "Chroma", ("double_blocks", "single_blocks", "distilled_guidance_layer"), "double_blocks", (0.79, 1.0),
        lacks=("nerf_blocks",),
    ),
    TransformerFamily(
        "Flux", ("double_blocks", "single_blocks", "pe_embedder", "vector_in"), "double_blocks", (0.79, 1.0)
    ),
    TransformerFamily(  # the bundled one, of which our own measurements are: `benchmarks/mini_dit.py`
        "Miniature", ("joint_blocks", "context_embedder"), "joint_blocks", (0.0, 1.0), timestep=200, read="attention",
        most=4,
    ),
    TransformerFamily("Stable Diffusion 3", ("joint_blocks", "context_embedder"), "joint_blocks", (0.33, 0.5)),
    TransformerFamily(
        "Qwen-Image", ("transformer_blocks", "txt_norm", "txt_in", "time_text_embed"), "transformer_blocks", (0.5, 0.75)
    ),
    TransformerFamily(
        "Lumina 2", ("layers", "context_refiner", "noise_refiner", "cap_embedder"), "layers", (0.53, 0.7),
        lacks=("dec_net",),
    ),
    TransformerFamily(
        "HiDream", ("double_stream_blocks", "single_stream_blocks", "caption_projection"), "double_stream_blocks",
        (0.7, 1.0), order="image first", encoder="t5xxl",
    ),
    TransformerFamily(
        "Anima", ("blocks", "llm_adapter", "t_embedding_norm"), "blocks", (0.3, 0.65), order="cross",
        attention="cross_attn", encoder="t5xxl",
    ),
    TransformerFamily(
        "Cosmos-Predict2", ("blocks", "x_embedder", "t_embedding_norm"), "blocks", (0.3, 0.65), order="cross",
        attention="cross_attn",
    ),
    TransformerFamily(
        "Wan", ("blocks", "text_embedding", "patch_embedding"), "blocks", (0.25, 0.63), order="cross",
        attention="cross_attn",
    ),
)  # fmt: skip


def family_of(network: nn.Module) -> TransformerFamily | None:
    """The family of a network; None of one that is not known."""
    return next((family for family in FAMILIES if family.owns(network)), None)


def flipped(block: nn.Module) -> bool:
    return bool(getattr(block, "flipped_img_txt", False))


def spaced(count: int, start: float, end: float) -> tuple[int, ...]:
    """Up to `BLOCKS` of `count` blocks, evenly spaced between two shares of them: (15, 16, 17, 18) of 19 from 0.79."""
    first = min(math.floor(start * count), count - 1)
    last = max(first, min(math.ceil(end * count), count) - 1)
    number = min(BLOCKS, last - first + 1)
    return tuple(round(first + i * (last - first) / max(1, number - 1)) for i in range(number))


def patch_side(network: nn.Module) -> int:
    """Positions of a latent along a side of the patch that is one image token."""
    patch = getattr(network, "patch_size", None) or getattr(network, "patch_spatial", None) or 2
    return patch[-1] if isinstance(patch, tuple | list) else patch


def padded_to(network: nn.Module) -> int:
    """The number that the image's tokens are filled up to a multiple of; 1 where they are not."""
    return getattr(network, "pad_tokens_multiple", None) or 1
