"""Any image model that ComfyUI samples, Flux and Stable Diffusion 3 among them, for what needs no more of it than an
estimate of the clean latent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .comfy import ComfyHost, literal

SIDE = 1024  # pixels along a side of the squares that models other than Stable Diffusion's UNets are trained on


@dataclass(frozen=True)
class Prompts:
    """One CONDITIONING a text, as ComfyUI's own nodes make it."""

    conditionings: tuple[list, ...]

    def __len__(self) -> int:
        return len(self.conditionings)

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(self.conditionings[rows])


class AnyComfyHost(ComfyHost):
    """MODEL, CLIP and VAE of any family. It embeds and denoises; it has no features to extract."""

    @property
    def channels(self) -> int:
        return self.model.get_model_object("latent_format").latent_channels

    @property
    def pixels(self) -> int:
        try:
            return super().pixels
        except InputError:  # no UNet that we know
            return SIDE**2

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Prompts:
        """Texts to conditionings, a text each."""
        return Prompts(tuple(self.conditioning(text) for text in texts))

    def conditioning(self, text: str) -> list:
        tokens = self.clip.tokenize(literal(text))
        if hasattr(self.clip, "encode_from_tokens_scheduled"):  # ComfyUI since December 2024
            return self.clip.encode_from_tokens_scheduled(tokens)
        context, pooled = self.clip.encode_from_tokens(tokens, return_pooled=True)
        return [[context, {"pooled_output": pooled}]]

    @torch.inference_mode()
    def denoise(self, z: Tensor, prompts: Prompts, *, timestep: int, seed: int = 0) -> Tensor:
        """What the model takes for the clean latent in `z` [B, C, h, w], a prompt a row, noised as far as a run has got
        when `timestep` of 999 are left."""
        sampling = self.model.get_model_object("model_sampling")
        sigma = float(sampling.percent_to_sigma(1 - max(timestep, 1) / 999))
        estimates: list[Tensor] = []
        for one, prompt in zip(z.split(1), prompts.conditionings, strict=True):
            self.step(one, prompt, sigma, seed, lambda predict: estimates.append(predict()))
        return torch.cat(estimates)
