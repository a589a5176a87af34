"""ComfyUI's MODEL, CLIP and VAE behind the methods that every host has: embed, encode, extract, ready.

Nothing of the host is patched: a pass runs on a clone of MODEL through the host's own sampler, with hooks that live
inside that one call. Networks are moved by ComfyUI's memory management alone.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import EDM, V_PREDICTION
from comfy.sample import sample_custom
from comfy.samplers import KSAMPLER
from torch import Tensor, nn

from ..errors import InputError
from ..features import Text, overhear
from ..ldm import unet_config
from ..networks.decoder import MaskDecoder
from ..networks.unet import UNetConfig, native_side
from ..schedule import noise_like
from ..tokenizer import LENGTH
from .base import Host

log = logging.getLogger("LD-ZNet")

WORKS = (
    "LD-ZNet reads the UNets of Stable Diffusion 1.x, 2.x and SDXL; of any other, Attention Mask makes masks by its "
    "method 'noise'"
)


# Every node that runs asks for these; finding them compares all names and shapes with a UNet that is built for it.
_sizes: WeakKeyDictionary[nn.Module, UNetConfig] = WeakKeyDictionary()


def family(model: ModelPatcher) -> str:
    """ComfyUI's name of a MODEL's family, such as SD15, SDXL or Flux."""
    return type(model.model.model_config).__name__


def read_unet_config(model: ModelPatcher) -> UNetConfig:
    """The UNet's sizes as its own tensors tell them. Raises InputError for an architecture that is not LDM's."""
    network = unwrapped(model.get_model_object("diffusion_model"))
    if network in _sizes:
        return _sizes[network]
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    try:
        _sizes[network] = unet_config(shapes, model.model.model_config.unet_config)
    except (KeyError, IndexError, ZeroDivisionError, ValueError):
        raise InputError(f"the loaded model is of family {family(model)}, which has no such UNet: {WORKS}") from None
    return _sizes[network]


def unwrapped(network: nn.Module) -> nn.Module:
    """A network without torch.compile's wrapping."""
    return getattr(network, "_orig_mod", network)


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


def plain(model: ModelPatcher) -> ModelPatcher:
    """A clone that computes as the checkpoint and its LoRAs do: without other nodes' guidance, attention patches,
    step caches and compiled graphs, none of which a decoder was trained on."""
    clone = model.clone()
    clone.model_options = {"transformer_options": {}}
    if hasattr(clone, "wrappers"):  # ComfyUI since December 2024
        clone.wrappers = {}
    if hasattr(clone.object_patches.get("diffusion_model"), "_orig_mod"):
        del clone.object_patches["diffusion_model"]
    return clone


def manage(decoder: MaskDecoder) -> ModelPatcher:
    """The decoder in ComfyUI's hands, in half precision where the device computes well in it."""
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


class ComfyHost(Host):
    """MODEL, CLIP and VAE of ComfyUI. Latents are scaled, as the UNet reads them.

    `vae` is needed to encode images only. `decoder` is a decoder that ComfyUI already manages; one that it does not
    is put in its hands for as long as this host lives.
    """

    def __init__(self, model: ModelPatcher, clip, vae=None, decoder: ModelPatcher | None = None):
        self.model, self.vae, self.managed = model, vae, decoder
        self.clip = clip.clone()
        self.clip.clip_layer(None)  # decoders read the last layer, whatever prompts are drawn with

    @property
    def name(self) -> str:
        return f"the loaded {family(self.model)} checkpoint"

    @property
    def prediction(self) -> str:
        sampling = self.model.get_model_object("model_sampling")
        if isinstance(sampling, EDM):  # a V_PREDICTION to ComfyUI
            return "edm"
        return "v" if isinstance(sampling, V_PREDICTION) else "eps"

    @cached_property
    def unet_config(self) -> UNetConfig:
        return read_unet_config(self.model)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.unet_config.out_channels

    @property
    def pixels(self) -> int:
        """Area of the pictures that the model was trained to draw."""
        side = getattr(self.model.model.model_config, "native_side", None)
        return (side or native_side(self.unet_config, self.prediction)) ** 2

    @cached_property
    def plain(self) -> ModelPatcher:
        return plain(self.model)

    def ready(self, decoder: MaskDecoder, z: Tensor) -> MaskDecoder:
        """The decoder loaded where it can run on `z`, room for that pass made."""
        if self.managed is None or self.managed.model is not decoder:
            self.managed = manage(decoder)
        room = self.model.model.memory_required(list(z.shape))
        model_management.load_models_gpu([self.managed], memory_required=room, force_full_load=True)
        return self.managed.model

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """Images [B, H, W, 3] in 0..1, sides multiples of 8, to scaled latents [B, 4, H/8, W/8]."""
        if self.vae is None:
            raise InputError("an image needs the VAE: connect the one of the checkpoint, or give a latent")
        # Older versions sample the posterior: from a generator of their own, so that ours never moves the user's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            latent = self.vae.encode(image)
        return self.scaled(latent, "the VAE makes latents")

    def scaled(self, latent: Tensor, what: str = "the latent is") -> Tensor:
        """LATENT samples [B, 4, h, w] as the UNet reads them. Raises InputError for latents of other families."""
        channels = self.channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise InputError(
                f"{what} of shape {list(latent.shape)}, but {self.name} reads [B, {channels}, h, w]: "
                "use the VAE that came with the model"
            )
        return self.model.get_model_object("latent_format").process_in(latent.float())

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Text:
        """Texts to contexts [B, 77, D] and, for SDXL, pooled texts."""
        contexts, pools, split = [], [], []
        for text in texts:
            tokens = self.clip.tokenize(literal(text))
            split.append(tokens)
            # [1, 77 a started 75 tokens, D] and [1, E]
            context, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
            if context.shape[1] > LENGTH:
                log.warning("%r is longer than %d tokens: what goes past them is not read", text, LENGTH - 2)
            contexts.append(context[:, :LENGTH])
            pools.append(pooled)
        context, width = torch.cat(contexts), self.unet_config.context_dim
        if context.shape[-1] != width:
            raise InputError(
                f"the CLIP writes texts of width {context.shape[-1]}, but {self.name} reads {width}: "
                "use the CLIP that came with the model"
            )
        end = first_tokens(self.clip.tokenize(""))[1]
        lengths = tuple(first_tokens(tokens).index(end) - 1 for tokens in split)
        return Text(context, torch.cat(pools) if self.unet_config.vector_channels else None, lengths)

    def transformer(self, block: str) -> nn.Module:
        """The spatial transformer of a block."""
        return transformer(unwrapped(self.plain.get_model_object("diffusion_model")), block)

    @torch.inference_mode()
    def observe(
        self, z: Tensor, text: Text, modules: dict[str, nn.Module], *, timestep: int, seed: int = 0
    ) -> dict[str, Tensor]:
        """What parts of the UNet put out for `z` noised to `timestep`, in one pass that ends at the last of them."""
        found: dict[str, Tensor] = {}

        def look(predict: Callable[[], Tensor]) -> None:
            with overhear(modules, stop=True) as heard:
                predict()
            found.update(heard)

        sigma = self.model.get_model_object("model_sampling").sigma(torch.tensor(float(timestep)))
        prompt = [[text.context, {} if text.pooled is None else {"pooled_output": text.pooled}]]
        self.step(z, prompt, float(sigma), seed, look)
        return found

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        """A context [B, N, D] through linear layers of the UNet."""
        model_management.load_models_gpu([self.plain])  # its LoRAs are in the weights only while it is loaded
        base = self.plain.model
        context = context.to(self.plain.load_device, base.manual_cast_dtype or base.get_dtype())
        return [layer(context) for layer in layers]

    def step(
        self, z: Tensor, prompt: list, sigma: float, seed: int, use: Callable[[Callable[[], Tensor]], object]
    ) -> None:
        """One step of the host's own sampler on `z` noised to `sigma`, under a CONDITIONING: loading, precision, LoRAs,
        inpainting inputs and SDXL's size conditions are its work. `use` is given what computes the clean latent."""
        sampling, noise = self.model.get_model_object("model_sampling"), noise_like(z, seed)

        def sampler(predict, x: Tensor, sigmas: Tensor, extra_args: dict, callback, disable) -> Tensor:
            z_t = sampling.noise_scaling(sigmas[:1].to(x), noise.to(x), z.to(x))
            use(lambda: predict(z_t, sigmas[:1].expand(len(z)), **extra_args))
            return x

        nothing, sigmas = torch.zeros_like(z, device="cpu"), torch.tensor([sigma, 0.0])
        sample_custom(
            self.plain, nothing, 1.0, KSAMPLER(sampler), sigmas, prompt, [], nothing, disable_pbar=True, seed=seed
        )
