"""The backbone that needs nothing but torch: a single-file latent diffusion model on our own networks.

It serves the bundled miniature and checkpoints of SD 1.x.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checkpoints.ldm import LatentDiffusion
from ..checkpoints.tokenizer import LENGTH, PIECES
from ..networks.layers import SpatialTransformer
from ..networks.schedule import Schedule, noise_like
from ..networks.unet import UNet, native_side
from .recording import Text
from .sampling import Sampling


class FileBackbone(Sampling):
    """A `model` of one file, with the VAE and text encoder of latent diffusion; a subclass gives its denoiser.
    Latents are scaled: unit variance."""

    def __init__(self, model, device: str = "cpu"):
        self.model, self.device = model, torch.device(device)
        for network in self.networks.values():
            network.to(self.device)

    @property
    def scale(self) -> float:
        return self.model.vae.SCALE

    @property
    def name(self) -> str:
        return self.model.about.get("name", "checkpoint")

    @property
    def nouns(self) -> tuple[str, ...]:
        """What the model says that it can draw."""
        return tuple(self.model.about.get("nouns", ()))

    @torch.inference_mode()
    def encode(self, image: Tensor, seed: int | None = None) -> Tensor:
        """Images [B, H, W, 3] in 0..1, sides multiples of 8, to scaled latents [B, 4, H/8, W/8]: the posterior's mean
        or, with a seed, a sample of it."""
        mean, log_variance = self.model.vae.posterior(image.to(self.device).permute(0, 3, 1, 2) * 2 - 1)
        if seed is not None:
            mean = mean + (log_variance / 2).exp() * noise_like(mean, seed)
        return mean * self.model.vae.SCALE

    @torch.inference_mode()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w] to images [B, 8h, 8w, 3] in 0..1."""
        pixels = self.model.vae.decode(z.to(self.device) / self.model.vae.SCALE)
        return (pixels.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    def encode_texts(self, texts: Sequence[str]) -> Text:
        """Texts to contexts [B, T, D]; what goes past 77 tokens is cut."""
        lengths = tuple(min(self.length(text), LENGTH - 2) for text in texts)
        rows = self.context_rows(lengths)
        tokens = [self.model.tokenizer.encode(text)[:rows] for text in texts]
        return Text(self.model.text(torch.tensor(tokens, device=self.device)), lengths=lengths)

    def context_rows(self, lengths: tuple[int, ...]) -> int:
        """T of the contexts of texts of so many tokens."""
        return LENGTH

    def length(self, text: str) -> int:
        """Tokens of a text, start and end not counted."""
        tokenizer = self.model.tokenizer
        return sum(len(tokenizer.word_tokens(p)) for p in PIECES.findall(text.lower()))

    def tokens_cut(self, text: str) -> int:
        """How many tokens at the end of a text `embed` leaves out."""
        return max(0, self.length(text) - (LENGTH - 2))


class LDMBackbone(FileBackbone):
    """A `LatentDiffusion` as a backbone."""

    model: LatentDiffusion

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.model.vae, "text": self.model.text, "unet": self.model.unet}

    @property
    def prediction(self) -> str:
        return self.model.schedule.prediction

    @property
    def unet_config(self):
        return self.model.unet.config

    @property
    def native_area(self) -> int:
        """Area of the pictures that the model was trained to draw."""
        return self.model.about.get("size", native_side(self.unet_config, self.prediction)) ** 2

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    def ldm_unet(self) -> UNet:
        """The denoiser."""
        return self.model.unet

    def predict(self, z_t: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return self.model.unet(z_t, timesteps, text.context)

    def transformer(self, block: str) -> SpatialTransformer:
        """The spatial transformer of a block."""
        return next(layer for layer in self.model.unet.get_submodule(block) if isinstance(layer, SpatialTransformer))
