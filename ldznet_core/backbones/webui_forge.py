"""Forge and Forge Neo: their loaded checkpoint as a backbone. Networks are moved by their memory management alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..networks.schedule import noise_like, per_sample
from .recording import Text
from .webui import WebUIBackbone, parts

ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")  # of SD 1.x and 2.x, SDXL


@contextmanager
def clip_skip_of(engines: Sequence[object], value: int) -> Iterator[None]:
    """Inside, text encoders skip that many layers, less one; those of SDXL never go below their own least."""
    before = [engine.clip_skip for engine in engines]
    try:
        for engine in engines:
            engine.clip_skip = max(value, getattr(engine, "minimal_clip_skip", value))
        yield
    finally:
        for engine, skip in zip(engines, before, strict=True):
            engine.clip_skip = skip


class ForgeBackbone(WebUIBackbone):
    """`sd_model` of `modules.shared` in Forge and Forge Neo, once a checkpoint is loaded. A pass runs without what
    extensions add to sampling; LoRAs stay."""

    def __init__(self, sd_model):
        super().__init__(sd_model)
        from backend import memory_management

        self.memory = memory_management

    @property
    def unet(self):
        """The patcher of the UNet, with the LoRAs of the last picture."""
        return self.sd_model.forge_objects.unet

    @property
    def network(self) -> nn.Module:
        return self.unet.model.diffusion_model

    @property
    def device(self) -> torch.device:
        return torch.device(self.memory.get_torch_device())

    @property
    def prediction(self) -> str:
        return "v" if self.unet.model.predictor.prediction_type == "v_prediction" else "eps"

    def vae_pass(self, pixels: Tensor) -> tuple[nn.Module, Callable[[], object]]:
        """The VAE, and a function that encodes `pixels` [B, 3, H, W] in -1..1 with it."""
        vae = self.sd_model.forge_objects.vae
        self.memory.load_models_gpu([vae.patcher], memory_required=vae.memory_used_encode(pixels.shape, vae.vae_dtype))
        network = vae.first_stage_model
        return network, lambda: network.encode(pixels.to(vae.device, vae.vae_dtype))

    def scaled(self, latent: Tensor) -> Tensor:
        return self.sd_model.forge_objects.vae.first_stage_model.process_in(latent)

    def conditioning(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Context [1, 77 n, D] of a text, and SDXL's vector [1, 2816]; read from the encoder's last layer, whatever
        clip skip pictures are drawn with."""
        with clip_skip_of(self.engines, 1):
            context, vector = parts(self.sd_model.get_learned_conditioning([text]))
        return context.float(), None if vector is None else vector.float()

    @property
    def engines(self) -> list:
        return [getattr(self.sd_model, name) for name in ENGINES if hasattr(self.sd_model, name)]

    def count_tokens(self, text: str) -> int:
        return self.engines[0].process_texts([text])[1]

    def predict(self, z: Tensor, text: Text, timestep: int, seed: int) -> Tensor:
        """The UNet's estimate of the clean latent in latents noised to `timestep`."""
        model = self.load(z)
        z = z.to(self.device)
        sigma = model.predictor.sigma(torch.tensor([float(timestep)])).to(self.device).expand(len(z))
        z_t = z + noise_like(z, seed) * per_sample(sigma, z)  # the UNet is told the noise level, and scales its input
        vector = {} if text.pooled is None else {"y": text.pooled.to(self.device)}
        context = text.context.to(self.device)
        return model.apply_model(z_t, sigma, c_crossattn=context, transformer_options={}, **vector)

    def load(self, z: Tensor):
        """The UNet on its device, with room for a pass over `z`."""
        self.memory.load_models_gpu([self.unet], memory_required=self.unet.memory_required(list(z.shape)))
        return self.unet.model

    @torch.inference_mode()
    def denoise(self, z: Tensor, text: Text, *, timestep: int, seed: int = 0) -> Tensor:
        clean = self.predict(z, text, timestep, seed).float()
        self.check_finite([clean], timestep)
        return clean

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        """A context [B, N, D] through linear layers of the UNet."""
        model = self.load(context.new_zeros(1, self.channels, 8, 8))
        context = context.to(self.device, model.computation_dtype)
        return [layer(context) for layer in layers]
