"""ComfyUI's MODEL, CLIP and VAE as a backbone.

Nothing of ComfyUI is patched: a pass runs on a clone of MODEL through ComfyUI's own sampler, with hooks that live
inside that one call. Networks are moved by ComfyUI's memory management alone.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.sample import sample_custom
from comfy.samplers import KSAMPLER
from torch import Tensor, nn

from ..checkpoints.tokenizer import LENGTH
from ..errors import InputError
from ..networks.schedule import noise_like
from ..networks.unet import UNetConfig
from .base import BaseBackbone
from .comfy_model import ModelFacts, family, plain, read_facts, read_unet_config, sigma_of, unwrapped
from .recording import Text, record

log = logging.getLogger("LD-ZNet")


def transformer(network: nn.Module, block: str) -> nn.Module:
    """The spatial transformer of a block of a UNet."""
    return next(layer for layer in network.get_submodule(block) if hasattr(layer, "transformer_blocks"))


def literal(text: str) -> str:
    """A text whose brackets are letters: a phrase has no weights."""
    return text.replace("(", r"\(").replace(")", r"\)")


def first_tokens(tokens: dict[str, list]) -> list:
    """The tokens of the first 77 places, as the first text encoder reads them, without weights; None for an embedding
    of the user's."""
    return [token if isinstance(token, int) else None for token, *_ in next(iter(tokens.values()))[0]]


def encode_texts(clip, texts: Sequence[str]) -> Text:
    """Texts to contexts [B, 77, D] and, where the CLIP has them, pooled texts [B, E]."""
    contexts, pools, split = [], [], []
    for text in texts:
        tokens = clip.tokenize(literal(text))
        split.append(tokens)
        # [1, 77 a started 75 tokens, D] and [1, E]
        context, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        if context.shape[1] > LENGTH:
            log.warning("%r is longer than %d tokens: what goes past them is not read", text, LENGTH - 2)
        contexts.append(context[:, :LENGTH])
        pools.append(pooled)
    end = first_tokens(clip.tokenize(""))[1:2]  # some CLIPs of other families, which callers refuse, have none
    rows = [[*first_tokens(tokens), *end] for tokens in split]
    lengths = tuple(row.index(end[0]) - 1 if end else len(row) for row in rows)
    return Text(torch.cat(contexts), None if any(p is None for p in pools) else torch.cat(pools), lengths)


def whole_clip(clip):
    """A clone that gives its last layer, which decoders read, whatever prompts are drawn with."""
    clone = clip.clone()
    clone.clip_layer(None)
    return clone


def manage(decoder: nn.Module) -> ModelPatcher:
    """The decoder under ComfyUI's memory management, in half precision where the device computes well in it."""
    device, dtype = model_management.get_torch_device(), torch.float32
    parameters = sum(p.numel() for p in decoder.parameters())
    if model_management.should_use_fp16(device, model_params=parameters):
        dtype = torch.float16
    elif model_management.should_use_bf16(device, model_params=parameters):
        dtype = torch.bfloat16
    for parameter in decoder.parameters():
        # Off the map of its file: a server that runs for days must outlive that file's being overwritten.
        parameter.data = parameter.data.to(dtype, copy=True)
    return ModelPatcher(decoder, load_device=device, offload_device=model_management.unet_offload_device())


class ComfyBackbone(BaseBackbone):
    """MODEL, CLIP and VAE of a UNet family. Latents are scaled, as the UNet reads them.

    `vae` is needed to encode images only. `decoder` is a decoder that ComfyUI already manages; one that it does not
    is managed by ComfyUI for as long as this backbone lives.
    """

    capabilities = frozenset(("features", "queries"))

    def __init__(self, model: ModelPatcher, clip, vae=None, decoder: ModelPatcher | None = None):
        self.model, self.vae, self.managed = model, vae, decoder
        self.clip = whole_clip(clip)

    @cached_property
    def facts(self) -> ModelFacts:
        return read_facts(self.model)

    @property
    def name(self) -> str:
        return f"the loaded {family(self.model)} checkpoint"

    @property
    def prediction(self) -> str:
        return self.facts.prediction

    @property
    def unet_config(self) -> UNetConfig:
        return read_unet_config(self.model)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.facts.channels

    @property
    def native_area(self) -> int:
        """Area of the pictures that the model was trained to draw."""
        return self.facts.native_area

    @property
    def stride(self) -> int:
        """Pixels along a side of one position of a latent."""
        return self.facts.stride

    @cached_property
    def plain(self) -> ModelPatcher:
        return plain(self.model)

    def ready(self, decoder: nn.Module, z: Tensor) -> nn.Module:
        """The decoder loaded where it can run on `z`, room for that pass made."""
        if self.managed is None or self.managed.model is not decoder:
            self.managed = manage(decoder)
        room = self.model.model.memory_required(list(z.shape))
        model_management.load_models_gpu([self.managed], memory_required=room, force_full_load=True)
        return self.managed.model

    @torch.inference_mode()
    def encode(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Images [B, H, W, 3] in 0..1, sides multiples of 8, to scaled latents [B, C, H/8, W/8]: the posterior's mean
        (in versions of 2024, one sample of it). Raises InputError for a seed, as ComfyUI's VAE keeps the posterior."""
        if self.vae is None:
            raise InputError("an image needs the VAE: connect the one of the checkpoint, or give a latent")
        if seed is not None:
            raise InputError("ComfyUI's VAE gives the mean of its posterior and no sample: encode without a seed")
        # Older versions sample the posterior: from a generator of their own, so that ours never moves the user's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            latent = self.vae.encode(image)
        return self.scaled(latent, "the VAE makes latents")

    def scaled(self, latent: Tensor, what: str = "the latent is") -> Tensor:
        """LATENT samples [B, C, h, w] or [B, C, 1, h, w] as the UNet reads them, [B, C, h, w]. Raises InputError for
        latents of other families, of videos, and with values that are not finite."""
        latent = without_frames(latent)
        if latent.ndim != 4 or latent.shape[1] != self.channels:
            raise InputError(
                f"{what} of shape {list(latent.shape)}, but {self.name} reads [B, {self.channels}, h, w]: "
                "use the VAE that came with the model"
            )
        if not latent.isfinite().all():
            raise InputError("the latent has values that are not finite (NaN or infinity): look at what made it")
        z = self.with_frames(latent.float())
        return without_frames(self.model.get_model_object("latent_format").process_in(z))

    def with_frames(self, latent: Tensor) -> Tensor:
        """Latents [B, C, h, w] as the model reads them: [B, C, 1, h, w] where it reads frames."""
        return latent.unsqueeze(2) if self.facts.has_frames else latent

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Text:
        """Texts to contexts [B, 77, D] and, for SDXL, pooled texts."""
        text, width = encode_texts(self.clip, texts), self.unet_config.context_dim
        if text.context.shape[-1] != width:
            raise InputError(
                f"the CLIP writes texts of width {text.context.shape[-1]}, but {self.name} reads {width}: "
                "use the CLIP that came with the model"
            )
        return text if self.unet_config.vector_channels else replace(text, pooled=None)

    def transformer(self, block: str) -> nn.Module:
        """The spatial transformer of a block."""
        return transformer(unwrapped(self.plain.get_model_object("diffusion_model")), block)

    @torch.inference_mode()
    def observe(
        self, z: Tensor, text: Text, modules: dict[str, nn.Module], *, timestep: int, seed: int = 0
    ) -> dict[str, Tensor]:
        """What parts of the UNet put out for `z` noised to `timestep`, in one pass that ends at the last of them."""
        recorded: dict[str, Tensor] = {}

        def use(predict: Callable[[], Tensor]) -> None:
            with record(modules, stop=True) as outputs:
                predict()
            recorded.update(outputs)

        prompt = [[text.context, {} if text.pooled is None else {"pooled_output": text.pooled}]]
        self.step(z, prompt, sigma_of(self.model.get_model_object("model_sampling"), timestep), seed, use)
        self.check_finite(recorded.values(), timestep)
        return recorded

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        """A context [B, N, D] through linear layers of the UNet."""
        model_management.load_models_gpu([self.plain])  # its LoRAs are in the weights only while it is loaded
        base = self.plain.model
        context = context.to(self.plain.load_device, base.manual_cast_dtype or base.get_dtype())
        return [layer(context) for layer in layers]

    def step(
        self,
        z: Tensor,
        prompt: list,
        sigma: float,
        seed: int | None,
        use: Callable[[Callable[[], Tensor]], object],
        model: ModelPatcher | None = None,
    ) -> None:
        """One step of ComfyUI's own sampler on `z` [B, C, h, w] noised to `sigma`, under a CONDITIONING: loading,
        precision, LoRAs, inpainting inputs and SDXL's size conditions are its work. `use` is called with a function
        that computes the clean latent. Without a seed `z` has its noise. `model` is `plain` or a clone of it."""
        sampling, noise = self.model.get_model_object("model_sampling"), self.with_frames(noise_like(z, seed or 0))
        z = self.with_frames(z)

        def sampler(predict, x: Tensor, sigmas: Tensor, extra_args: dict, callback, disable) -> Tensor:
            z_t = z.to(x) if seed is None else sampling.noise_scaling(sigmas[:1].to(x), noise.to(x), z.to(x))
            use(lambda: predict(z_t, sigmas[:1].expand(len(z)), **extra_args))
            return x

        nothing, sigmas = torch.zeros_like(z, device="cpu"), torch.tensor([sigma, 0.0])
        model = model or self.plain
        sample_custom(
            model, nothing, 1.0, KSAMPLER(sampler), sigmas, prompt, [], nothing, disable_pbar=True, seed=seed or 0
        )


def without_frames(latents: Tensor) -> Tensor:
    """Latents [B, C, 1, h, w] as [B, C, h, w], others as they are. Raises InputError for more frames than one."""
    if latents.ndim != 5:
        return latents
    if latents.shape[2] != 1:
        raise InputError(f"these are video latents of {latents.shape[2]} frames: give the latent of one picture")
    return latents.squeeze(2)
