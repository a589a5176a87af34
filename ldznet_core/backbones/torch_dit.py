"""A miniature transformer as a backbone that needs nothing but torch.

Latents here are the VAE's four channels; the transformer's sixteen are entered and left at every call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checkpoints.mmdit import LatentFlow
from ..checkpoints.tokenizer import PIECES
from ..errors import InputError
from ..networks.mmdit import narrow, widen
from ..networks.schedule import Flow
from .families.dit import TransformerFamily, family_of
from .joint import BlockAttention, Call, Concepts, Layout, prompt_of, spans
from .recording import Text, follow
from .riding import ride
from .step_recorder import StepRecorder
from .torch_ldm import FileBackbone


class TransformerBackbone(FileBackbone):
    """A `LatentFlow` as a backbone. Nothing is recorded while it samples: its drawings are read afterwards."""

    model: LatentFlow
    capabilities = frozenset(("denoise", "sample", "joint"))
    channels = 4
    patch = 1
    prediction = Flow.prediction
    schedule = Flow()

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.model.vae, "text": self.model.text, "transformer": self.model.transformer}

    @property
    def family(self) -> TransformerFamily:
        return family_of(self.model.transformer)

    @property
    def native_area(self) -> int:
        """Area of the pictures that the model was trained to draw."""
        return self.model.about["size"] ** 2

    def context_rows(self, lengths: tuple[int, ...]) -> int:
        return max(self.model.tokens, max(lengths, default=0) + 2)

    def predict(self, z_t: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        side = self.model.transformer.config.table
        if max(z_t.shape[-2:]) > side:
            raise InputError(
                f"{self.name} takes pictures of up to {8 * side} pixels a side, this one has "
                f"{8 * z_t.shape[-1]}x{8 * z_t.shape[-2]}: make it smaller, or cut it where it is very long"
            )
        return narrow(self.model.transformer(widen(z_t), timesteps.float(), text.context))

    def recorded(
        self, recorder: StepRecorder, z_t: Tensor, timesteps: Tensor, text: Text, shares: Sequence[Tensor] = ()
    ) -> Tensor:
        return self.guided(z_t, timesteps, text, shares)

    def grid(self, z: Tensor) -> tuple[int, int]:
        """Rows and columns of the image tokens of latents [B, 4, h, w]."""
        return tuple(z.shape[-2:])

    def concepts(self, names: Sequence[str], caption: str = "") -> Concepts:
        """One prompt that names all of `names`, and where each stands in its context. With a caption they ride along
        with that. Raises InputError where the prompt is too long."""

        def tokenize(text: str) -> list[int]:
            words = (self.model.tokenizer.word_tokens(piece) for piece in PIECES.findall(text.lower()))
            return [self.model.tokenizer.start, *(token for word in words for token in word)]

        prompt = prompt_of(names)
        if cut := self.tokens_cut(prompt):
            raise InputError(f"{len(names)} phrases and background words are {cut} tokens too many: ask for fewer")
        text, found = self.embed([prompt]).context, spans(tokenize, names)
        own = self.embed([caption]).context if caption else text[:, :0]
        found = tuple(tuple(own.shape[1] + token for token in tokens) for tokens in found)
        text = torch.cat([own, text], dim=1)
        return Concepts(Text(text), found, text.shape[1], own.shape[1])

    @torch.inference_mode()
    def attend(
        self,
        z: Tensor,
        concepts: Concepts,
        blocks: Sequence[int] = (),
        *,
        timestep: float,
        seed: int | None = 0,
    ) -> list[BlockAttention]:
        """What the attention of `blocks` (default: those of the family) shows of concepts at the positions of latents
        [B, 4, h, w]. Noise is added until it is `timestep` thousandths of them; without a seed it is in them. The pass
        ends after the last block. Raises InputError where values are not finite."""
        if seed is None:
            z_t, timesteps = z.to(self.device), torch.full((len(z),), timestep, device=self.device)
        else:
            z_t, timesteps = self.noised(z, timestep, seed)
        network, tokens = self.model.transformer, z.shape[-2] * z.shape[-1]
        layout = Layout("text first", False, tokens, tokens, concepts)
        shown: dict[int, BlockAttention] = {}

        def reader(block: int):
            def hook(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> Tensor | None:
                call = Call(lambda q, k, v, rows: module.forward(q, k, v), *inputs, inputs[0].shape[1], split=True)
                if concepts.caption:
                    output, found = ride(layout, call, block in chosen)
                else:
                    found = layout.read(call, output)
                if found is not None:
                    shown[block] = found
                return output

            return hook

        chosen = tuple(blocks) or self.family.chosen(network)
        modules = {str(i): network.joint_blocks[i] for i in chosen}
        hooked = range(max(chosen) + 1) if concepts.caption else chosen
        handles = [network.joint_blocks[i].attention.register_forward_hook(reader(i)) for i in hooked]
        try:
            with follow(modules):
                self.predict(z_t, timesteps, concepts.prompt.expand(len(z)))
        finally:
            for handle in handles:
                handle.remove()
        read = [shown[i] for i in chosen]
        self.check_finite([x for one in read for x in (one.share, one.image, one.text)], timestep)
        return read
