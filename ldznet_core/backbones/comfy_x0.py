"""Any image model that ComfyUI samples, Flux and Stable Diffusion 3 among them, for what needs no more of it than an
estimate of the clean latent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .comfy import ComfyBackbone, literal, without_frames
from .comfy_model import sigma_of


@dataclass(frozen=True)
class Prompts:
    """One CONDITIONING a text, as ComfyUI's own nodes make it."""

    conditionings: tuple[list, ...]

    def __len__(self) -> int:
        return len(self.conditionings)

    def __getitem__(self, rows: slice) -> "Prompts":
        return Prompts(self.conditionings[rows])


class ComfyX0Backbone(ComfyBackbone):
    """MODEL, CLIP and VAE of any family. It embeds and denoises; it has no features to extract."""

    capabilities = frozenset(("denoise",))

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
    def denoise(self, z: Tensor, text: Prompts, *, timestep: int, seed: int = 0) -> Tensor:
        """The model's estimate of the clean latent in `z` [B, C, h, w] noised to `timestep`, a prompt a row."""
        estimates: list[Tensor] = []
        sigma = sigma_of(self.model.get_model_object("model_sampling"), timestep)
        for one, prompt in zip(z.split(1), text.conditionings, strict=True):
            self.step(one, prompt, sigma, seed, lambda predict: estimates.append(without_frames(predict())))
        self.check_finite(estimates, timestep)
        return torch.cat(estimates)
