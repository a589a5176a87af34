"""What a loaded ComfyUI MODEL is: its family, its UNet's sizes, its noise schedule, and a plain clone of it."""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from comfy import model_management, model_sampling
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..checkpoints.ldm import unet_config
from ..errors import InputError
from ..networks.unet import UNetConfig, native_side

WORKS = (
    "LD-ZNet reads the UNets of Stable Diffusion 1.x, 2.x and SDXL; Segment without Decoder also reads the attention "
    "of Flux, Stable Diffusion 3, Qwen-Image, Lumina 2 and their kin, and works on any model by its method 'noise'"
)
SIDE = 1024  # pixels along a side of the squares that models other than Stable Diffusion's UNets are trained on
LAST = 999  # the noisiest timestep


@dataclass(frozen=True)
class ModelFacts:
    """`family` is ComfyUI's name, such as SD15 or Flux. `unet` is None where the network is no LDM UNet. `prediction`
    is "eps", "v" or "edm". `channels` are those of the latents, `native_area` the pixels of the pictures that the
    model was trained on, `stride` the pixels along a side of one position of a latent. `has_frames` says that the model
    reads latents [B, C, frames, h, w]."""

    family: str
    unet: UNetConfig | None
    prediction: str
    channels: int
    native_area: int
    stride: int
    has_frames: bool


def read_facts(model: ModelPatcher) -> ModelFacts:
    """The one place where they are read."""
    config, latents = model.model.model_config, model.get_model_object("latent_format")
    try:
        unet = read_unet_config(model)
    except InputError:
        unet = None
    prediction = read_prediction(model.get_model_object("model_sampling"))
    # From the class: asking an instance for what it lacks makes newer versions of ComfyUI log a warning.
    side = getattr(type(config), "native_side", None) or (native_side(unet, prediction) if unet else SIDE)
    frames = getattr(latents, "latent_dimensions", 2) == 3
    stride = getattr(latents, "spacial_downscale_ratio", 8)  # older versions know no latents but those of 8
    return ModelFacts(family(model), unet, prediction, latents.latent_channels, side**2, stride, frames)


def family(model: ModelPatcher) -> str:
    """ComfyUI's name of a MODEL's family, such as SD15, SDXL or Flux."""
    return type(model.model.model_config).__name__


def read_prediction(sampling: nn.Module) -> str:
    """What the network predicts: "eps", "v" or "edm"."""
    if isinstance(sampling, model_sampling.EDM):  # a subclass of V_PREDICTION
        return "edm"
    return "v" if isinstance(sampling, model_sampling.V_PREDICTION) else "eps"


# Every node that runs asks for these; finding them compares all names and shapes with a UNet that is built for it.
_sizes: WeakKeyDictionary[nn.Module, UNetConfig] = WeakKeyDictionary()


def read_unet_config(model: ModelPatcher) -> UNetConfig:
    """The UNet's sizes, from the shapes of its tensors. Raises InputError for an architecture that is not LDM's."""
    network = unwrapped(model.get_model_object("diffusion_model"))
    if network in _sizes:
        return _sizes[network]
    with ejected(model):
        shapes = logical_shapes(network)
    try:
        _sizes[network] = unet_config(shapes, model.model.model_config.unet_config)
    except (KeyError, IndexError, ZeroDivisionError, ValueError):
        raise InputError(f"the loaded model is of family {family(model)}, which has no such UNet: {WORKS}") from None
    return _sizes[network]


def logical_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes that tensors have in computing. Weights of 4 bits are packed, and state_dict() has packed shapes."""
    tensors = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    return {name: tuple(getattr(tensor, "tensor_shape", tensor.shape)) for name, tensor in tensors}


@contextmanager
def ejected(model: ModelPatcher) -> Iterator[None]:
    """Inside, the network has no layers that extensions (such as AnimateDiff) put into it while it is loaded."""
    with ExitStack() as stack:
        for loaded in model_management.loaded_models():
            if getattr(loaded, "model", None) is model.model and hasattr(loaded, "use_ejected"):
                stack.enter_context(loaded.use_ejected())
        yield


def unwrapped(network: nn.Module) -> nn.Module:
    """A network without torch.compile's wrapping."""
    return getattr(network, "_orig_mod", network)


def plain(model: ModelPatcher) -> ModelPatcher:
    """A clone that computes as the checkpoint and its LoRAs do, on one device: without other nodes' guidance,
    attention patches, step caches, injected layers, additional models and compiled graphs, none of which a decoder
    was trained on."""
    clone = model.clone()
    clone.model_options = {"transformer_options": {}}
    if hasattr(clone, "wrappers"):  # ComfyUI since December 2024
        clone.wrappers, clone.injections, clone.is_injected = {}, {}, False
        # Among them are the clones on other GPUs: a pass there cannot be ended early.
        clone.additional_models = {}
    if hasattr(clone.object_patches.get("diffusion_model"), "_orig_mod"):
        del clone.object_patches["diffusion_model"]
    return clone


def has_timesteps(sampling: nn.Module) -> bool:
    """Whether a schedule counts timesteps 0..999 itself, as Stable Diffusion's does."""
    other = (model_sampling.ModelSamplingDiscreteEDM, model_sampling.StableCascadeSampling)
    return isinstance(sampling, model_sampling.ModelSamplingDiscrete) and not isinstance(sampling, other)


def sigma_of(sampling: nn.Module, timestep: int) -> float:
    """The noise level at a timestep 0..999. Of schedules that count no timesteps (EDM, flows) it is the noise level of
    a run of which the share `timestep` / 999 is left."""
    if has_timesteps(sampling):
        return float(sampling.sigma(torch.tensor(float(timestep))))
    if isinstance(sampling, model_sampling.ModelSamplingDiscreteEDM):  # its percent_to_sigma gives infinity
        return float(sampling.sigmas[timestep])
    # At the very ends of a run some schedules answer with 0 and with 999999999.9.
    return float(sampling.percent_to_sigma(1 - min(max(timestep, 1), LAST - 1) / LAST))


def options_of(arguments: tuple, named: dict) -> dict:
    """The `transformer_options` among the arguments of a call of a ComfyUI model's `apply_model`."""
    return arguments[5] if len(arguments) > 5 else named.get("transformer_options", {})


def timestep_of(sampling: nn.Module, sigma: Tensor) -> int:
    """The timestep of a noise level [1]: the inverse of `sigma_of`."""
    if has_timesteps(sampling):
        return int(sampling.timestep(sigma.float())[0])
    value = float(sigma)
    above = bisect_left(range(LAST), value, lo=1, key=lambda timestep: sigma_of(sampling, timestep))
    gaps = [abs(value - sigma_of(sampling, timestep)) for timestep in (above - 1, above)]
    return above - (gaps[0] < gaps[1])
