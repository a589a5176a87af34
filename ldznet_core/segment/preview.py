"""Where words are being drawn, as a picture of one step of a sampler."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..backbones.families.unet import plan
from ..backbones.queries import Queries
from ..backbones.recording import Text
from ..errors import InputError
from ..imaging.visualize import overlay
from ..networks.unet import UNetConfig
from .attention import phrase_keys
from .attention_maps import evidence, masks_of, phrase_attention

SIDE = 512  # of the picture, at most


class WordPreview:
    """Reads phrases from the cross-attention of a step and draws them on its estimate of the picture.

    Attention is measured against its own mean over the image: early steps are close to the pure noise that it is
    compared with otherwise. So every phrase is marked where it is strongest, also one that will not be there.

    `text` and `empty` are the phrases and the empty text, encoded. `colours` [C, 3] and `ground` [3] make a rough
    picture of a latent's channels; without them the ground is grey. `send` is given each picture.
    Raises InputError for a phrase of no words that the text encoder knows.
    """

    def __init__(
        self,
        config: UNetConfig,
        phrases: Sequence[str],
        text: Text,
        empty: Text,
        send: Callable[[Image.Image], None],
        colours: Tensor | None = None,
        ground: Tensor | None = None,
    ):
        if not min(text.lengths):
            raise InputError("a phrase has no words that the text encoder knows: say it otherwise")
        self.config, self.phrases, self.text, self.empty, self.send = config, phrases, text, empty, send
        self.colours, self.ground = colours, ground
        self.keys: list[tuple[Tensor, Tensor]] = []
        self.size = (0, 0)  # of the latents that the keys are for

    def modules(self, size: tuple[int, int], find: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
        return plan(self.config, *size).modules(find)

    def show(
        self, clean: Tensor, outputs: dict[str, Tensor], find: Callable[[str], nn.Module], like: Tensor
    ) -> None:
        size = tuple(clean.shape[-2:])
        queries = Queries.of(plan(self.config, *size), size, outputs)
        if queries is None:
            return
        if size != self.size:
            running = SimpleNamespace(
                transformer=find, project=lambda context, layers: [layer(context.to(like)) for layer in layers]
            )
            self.keys, self.size = phrase_keys(running, queries.plan, self.text, self.empty.context[:, :2]), size
        shares = phrase_attention(queries, self.keys, self.config)
        masks = masks_of(evidence(shares, shares, queries))[0].cpu()  # [P, h', w']
        scale = min(8, SIDE / max(size))
        shape = tuple(max(1, round(side * scale)) for side in size)
        masks, picture = (
            F.interpolate(one[None], shape, mode="bilinear", align_corners=False)[0]
            for one in (masks, self.rough(clean[0]))
        )
        self.send(overlay(picture.permute(1, 2, 0), masks, self.phrases))

    def rough(self, clean: Tensor) -> Tensor:
        """A latent [C, h, w] as a small picture [3, h, w] in 0..1."""
        clean = clean.float().cpu()
        if self.colours is None or len(self.colours) != len(clean):
            return torch.full((3, *clean.shape[1:]), 0.5)
        picture = torch.einsum("chw,cd->dhw", clean, self.colours)
        if self.ground is not None:
            picture = picture + self.ground[:, None, None]
        return ((picture + 1) / 2).clamp(0, 1)
