"""AUTOMATIC1111's WebUI: its loaded checkpoint as a backbone. The networks are LDM's own, or sgm's for SDXL."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..networks.schedule import Schedule, noise_like
from .recording import Text
from .webui import WebUIBackbone, parts


@contextmanager
def changed_item(items: dict, key: str, value: object) -> Iterator[None]:
    """Inside, an item of a dict has another value."""
    before = {key: items[key]} if key in items else {}
    items[key] = value
    try:
        yield
    finally:
        del items[key]
        items.update(before)


class A1111Backbone(WebUIBackbone):
    """`sd_model` of `modules.shared`. Passes go through its own `apply_model`, which casts, autocasts and, with
    --lowvram and --medvram, moves the parts of the model."""

    def __init__(self, sd_model):
        super().__init__(sd_model)
        from modules import devices, shared

        self.devices, self.options = devices, shared.opts

    @property
    def network(self) -> nn.Module:
        return self.sd_model.model.diffusion_model

    @property
    def device(self) -> torch.device:
        return torch.device(self.devices.device)

    @property
    def prediction(self) -> str:
        return "v" if self.sd_model.parameterization == "v" else "eps"

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the model was trained with; options such as zero terminal SNR replace it while
        drawing."""
        trained = getattr(self.sd_model, "alphas_cumprod_original", self.sd_model.alphas_cumprod)
        return Schedule(trained.float().cpu(), self.prediction)

    def vae_pass(self, pixels: Tensor) -> tuple[nn.Module, Callable[[], object]]:
        """The VAE, and a function that encodes `pixels` [B, 3, H, W] in -1..1 with it."""
        vae = self.sd_model.first_stage_model

        def run() -> None:
            with self.devices.autocast():
                vae.encode(pixels.to(self.device, self.devices.dtype_vae))  # moves the VAE, with --lowvram

        return vae, run

    def scaled(self, latent: Tensor) -> Tensor:
        return latent * self.sd_model.scale_factor

    def conditioning(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Context [1, 77 n, D] of a text, and SDXL's vector [1, 2816]; read from the encoder's last layer, whatever
        clip skip pictures are drawn with."""
        with changed_item(self.options.data, "CLIP_stop_at_last_layers", 1), self.devices.autocast():
            context, vector = parts(self.sd_model.get_learned_conditioning([text]))
        return context.float(), None if vector is None else vector.float()

    def count_tokens(self, text: str) -> int:
        return self.sd_model.cond_stage_model.process_texts([text])[1]

    def predict(self, z: Tensor, text: Text, timestep: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """The UNet's output for latents noised to `timestep`, with those latents and the timestep of each row."""
        z = z.to(self.device)
        timesteps = torch.full((len(z),), timestep, device=self.device)
        z_t = self.schedule.add_noise(z, noise_like(z, seed), timesteps)
        context = text.context.to(self.device)
        if text.pooled is None:
            inputs = {"c_crossattn": [context], "c_concat": [z.new_zeros(len(z), 5, 1, 1)]}  # read by inpainting models
        else:
            inputs = {"crossattn": context, "vector": text.pooled.to(self.device)}
        with self.devices.autocast():
            return self.sd_model.apply_model(z_t, timesteps, inputs), z_t, timesteps

    @torch.inference_mode()
    def denoise(self, z: Tensor, text: Text, *, timestep: int, seed: int = 0) -> Tensor:
        clean = self.schedule.split(*self.predict(z, text, timestep, seed))[0].float()
        self.check_finite([clean], timestep)
        return clean

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        """A context [B, N, D] through linear layers of the UNet. With --lowvram they lie on the CPU: a copy is
        moved, because moving them would tell the WebUI's own bookkeeping nothing."""
        outputs = []
        with self.devices.autocast():
            for layer in layers:
                if next(layer.parameters()).device != self.device:
                    layer = copy.deepcopy(layer).to(self.device)
                outputs.append(layer(context.to(self.device, next(layer.parameters()).dtype)))
        return outputs
