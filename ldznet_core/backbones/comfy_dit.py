"""Diffusion transformers in ComfyUI as a backbone: Flux, Stable Diffusion 3, Qwen-Image and their kin.

Words are read in one cut-short call of the model, made by ComfyUI's own sampler, whose prompt names them. Its
attention shows itself to `optimized_attention_override`, which is ComfyUI's place for functions that compute attention
otherwise. One that is there already goes on computing it.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from comfy import model_sampling
from comfy.ldm.modules import attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..errors import InputError
from .comfy_model import family, read_facts, unwrapped
from .comfy_x0 import ComfyX0Backbone
from .families.dit import TransformerFamily, family_of, padded_to, patch_side
from .joint import BlockAttention, Call, Concepts, Layout, prompt_of, spans
from .recording import follow
from .riding import ride

OVERRIDE = "optimized_attention_override"
SHARES = 1000  # of a timestep: it counts how many thousandths of a latent are noise
BY_ROW = ("attention_mask", "t5xxl_ids", "t5xxl_weights")  # what a CONDITIONING holds for each row of its context
CLIPS = ("l", "g")  # ComfyUI's names of the tokens of CLIP's two text encoders


class ComfyTransformerBackbone(ComfyX0Backbone):
    """MODEL, CLIP and VAE of a family of diffusion transformers."""

    capabilities = frozenset(("denoise", "joint"))

    @cached_property
    def family(self) -> TransformerFamily:
        return family_of(network_of(self.model))

    @property
    def patch(self) -> int:
        """Positions of a latent along a side of what is one image token."""
        return patch_side(network_of(self.model))

    def grid(self, z: Tensor) -> tuple[int, int]:
        """Rows and columns of the image tokens of latents [B, C, h, w]."""
        return math.ceil(z.shape[-2] / self.patch), math.ceil(z.shape[-1] / self.patch)

    @torch.inference_mode()
    def concepts(self, names: Sequence[str], caption: str = "") -> Concepts:
        """One prompt that names all of `names`, and where each stands in its context. With a caption they ride along
        with that."""
        # Brackets are weights to some encoders and letters to others: a name has none.
        names = [" ".join(name.replace("(", " ").replace(")", " ").split()) for name in names]
        prompt = self.conditioning(prompt_of(names))
        length = prompt[0][0].shape[1]
        encoder, first = self.encoder(self.clip.tokenize(prompt_of(names)), length)
        found = spans(lambda text: flat(self.clip.tokenize(text)[encoder]), names)
        own = self.conditioning(caption) if caption else []
        before = own[0][0].shape[1] if own else 0
        tokens = tuple(tuple(before + first + token for token in tokens) for tokens in found)
        return Concepts(beside(own, prompt) if own else prompt, tokens, before + length, before)

    def encoder(self, tokens: dict[str, list], length: int) -> tuple[str, int]:
        """The text encoder whose tokens are read in a context of `length` rows, and the row of its first token."""
        sizes = {name: len(flat(chunks)) for name, chunks in tokens.items()}
        if self.family.encoder in sizes:
            return self.family.encoder, 0
        networks = getattr(self.clip, "cond_stage_model", None)  # an encoder that was not loaded is None there
        large = next((n for n in sizes if n not in CLIPS and getattr(networks, n, True) is not None), None)
        clip = next((n for n in CLIPS if n in sizes), None)
        if large is None:
            return clip, 0
        if clip and sizes[clip] + sizes[large] == length:  # one after the other, as in Stable Diffusion 3
            return large, sizes[clip]
        return large, min(0, length - sizes[large])  # of the template of a chat the beginning is cut off

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
        """What the attention of `blocks` (default: those of the family) shows of concepts at the image tokens of
        latents [B, C, h, w], row by row of `grid(z)`. Noise is added until it is `timestep` thousandths of them;
        without a seed it is in them. The pass ends after the last block. Raises InputError where it shows nothing, or
        values that are not finite."""
        network, tokens = network_of(self.plain), math.prod(self.grid(z))
        side = getattr(network, "pos_embed_max_size", None) or math.inf  # of the position table, as in SD 3
        if max(self.grid(z)) > side:
            height, width = z.shape[-2:]
            raise InputError(
                f"{self.name} takes latents of up to {side * self.patch} positions a side, this one has "
                f"{width}x{height}: make the picture smaller, or cut it where it is very long"
            )
        multiple = padded_to(network)
        filled = math.ceil(tokens / multiple) * multiple
        modules = self.family.modules(network, tuple(blocks) or self.family.chosen(network))
        earlier = self.model.model_options.get("transformer_options", {}).get(OVERRIDE)
        reader = AttentionReader(Layout(self.family.order, self.family.left_padded, tokens, filled, concepts), earlier)

        def use(predict: Callable[[], Tensor]) -> None:
            with follow(modules) as reader.running:
                predict()

        model = self.plain.clone()
        model.model_options["transformer_options"][OVERRIDE] = reader
        sampling = model.get_model_object("model_sampling")
        self.step(z, concepts.prompt, flow_sigma(sampling, timestep), seed, use, model)
        if len(reader.read) < len(modules):
            raise InputError(f"{self.name} ran without showing its attention to the words: choose the method noise")
        shown = [reader.read[name] for name in modules]
        self.check_finite([x for one in shown for x in (one.share, one.image, one.text) if x is not None], timestep)
        return shown


class AttentionReader:
    """A function for `optimized_attention_override`: it computes attention as `earlier`, or as ComfyUI does, and reads
    the calls in the modules that `running` names."""

    def __init__(self, layout: Layout, earlier: Callable | None):
        self.layout, self.earlier = layout, earlier
        self.running: Callable[[], str | None] = lambda: None
        self.read: dict[str, BlockAttention] = {}

    def __call__(self, func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor, rows: tuple[Tensor, Tensor] | None) -> Tensor:
            extra, named = args, kwargs
            if rows is not None:
                extra = [cut_mask(value, sizes, rows) for value in args]
                named = {name: cut_mask(value, sizes, rows) for name, value in kwargs.items()}
            compute = func if self.earlier is None else partial(self.earlier, func)
            return compute(q, k, v, heads, *extra, **named)

        call, block, shown = Call(attend, q, k, v, heads, bool(kwargs.get("skip_reshape"))), self.running(), None
        sizes = call.sizes
        if self.layout.concepts.caption:
            output, shown = ride(self.layout, call, wanted=block is not None)
        else:
            output = call.output()
            if block is not None:
                shown = self.layout.read(call, output)
        if shown is not None:
            self.read[block] = shown
        return output


def beside(caption: list, concepts: list) -> list:
    """The CONDITIONING whose context is the caption's, then that of concepts. What else it holds is the caption's, with
    the concepts' part of what has an entry a row."""
    (context, extra), (other, more) = caption[0][:2], concepts[0][:2]
    extra = dict(extra)
    for name, value in extra.items():
        mate = more.get(name)
        if name in BY_ROW and isinstance(value, Tensor) and isinstance(mate, Tensor):
            extra[name] = torch.cat([value, mate], dim=-1)
    return [[torch.cat([context, other.to(context)], dim=1), extra]]


def cut_mask(value: object, sizes: tuple[int, int], rows: tuple[Tensor, Tensor]) -> object:
    """An argument of attention for a part of its rows: a mask [..., queries or 1, keys] is cut, all else is kept."""
    if not isinstance(value, Tensor) or not value.ndim or value.shape[-1] != sizes[1]:
        return value
    value = value.index_select(-1, rows[1])
    whole = value.ndim > 1 and value.shape[-2] == sizes[0]
    return value.index_select(-2, rows[0]) if whole else value


def network_of(model: ModelPatcher) -> nn.Module:
    return unwrapped(model.get_model_object("diffusion_model"))


def shows_attention(model: ModelPatcher) -> bool:
    """Whether a MODEL is a diffusion transformer whose attention can be read. Raises InputError where it is one, and
    ComfyUI is too old."""
    if read_facts(model).unet is not None or family_of(network_of(model)) is None:
        return False
    if not hasattr(attention, "wrap_attn"):
        raise InputError(
            f"this version of ComfyUI does not show the attention of a model of family {family(model)}: update "
            "ComfyUI, or choose the method noise"
        )
    return True


def flow_sigma(sampling: nn.Module, timestep: float) -> float:
    """The noise level at which `timestep` thousandths of a latent are noise. The shift that a model samples with has
    no part in it."""
    share = min(max(timestep, 1), SHARES - 1) / SHARES
    return share / (1 - share) if adds_noise(sampling) else share


def flow_timestep(sampling: nn.Module, sigma: float) -> float:
    """How many thousandths of a latent are noise at a noise level: the inverse of `flow_sigma`."""
    return SHARES * (sigma / (1 + sigma) if adds_noise(sampling) else sigma)


def adds_noise(sampling: nn.Module) -> bool:
    """Whether latents keep their strength while noise is added (Cosmos, and models that are no flows), and noise
    levels go beyond 1."""
    return not isinstance(sampling, model_sampling.CONST)


def flat(chunks: list[list[tuple]]) -> list:
    """The tokens of all chunks of a text, without weights; None for an embedding of the user's."""
    return [token if isinstance(token, int) else None for chunk in chunks for token, *_ in chunk]
