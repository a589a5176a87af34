"""The host that needs nothing but torch: a single-file latent diffusion model on our own networks.

It serves the bundled miniature; ComfyUI and diffusers have hosts of their own with the same methods.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..features import Features, Text, overhear
from ..ldm import LatentDiffusion
from ..networks.layers import SpatialTransformer
from ..networks.unet import native_side
from ..queries import Average, Plan, Queries
from ..schedule import Schedule, noise_like
from ..tokenizer import LENGTH, PIECES
from .base import TorchHost

GUIDANCE = 3.0
STEPS = 25
CAPTURE_AT = 400  # the sampling step nearest to this timestep is the one whose maps are kept


class LDMHost(TorchHost):
    """A `LatentDiffusion` behind the methods that every host has. Latents are scaled: unit variance."""

    def __init__(self, model: LatentDiffusion, device: str = "cpu"):
        self.model, self.device = model, torch.device(device)
        for network in (model.vae, model.text, model.unet):
            network.to(self.device)

    @property
    def name(self) -> str:
        return self.model.about.get("name", "checkpoint")

    @property
    def prediction(self) -> str:
        return self.model.schedule.prediction

    @property
    def unet_config(self):
        return self.model.unet.config

    @property
    def pixels(self) -> int:
        """Area of the pictures that the model was trained to draw."""
        return self.model.about.get("size", native_side(self.unet_config, self.prediction)) ** 2

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

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Text:
        """Texts to contexts [B, 77, D]; what goes past 77 tokens is cut."""
        tokens = [self.model.tokenizer.encode(text) for text in texts]
        context = self.model.text(torch.tensor(tokens, device=self.device))
        return Text(context, lengths=tuple(min(self.length(text), LENGTH - 2) for text in texts))

    def length(self, text: str) -> int:
        """Tokens of a text, start and end not counted."""
        tokenizer = self.model.tokenizer
        return sum(len(tokenizer.word_tokens(p)) for p in PIECES.findall(text.lower()))

    def tokens_cut(self, text: str) -> int:
        """How many tokens at the end of a text `embed` leaves out."""
        return max(0, self.length(text) - (LENGTH - 2))

    @property
    def schedule(self) -> Schedule:
        return self.model.schedule

    def predict(self, z_t: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return self.model.unet(z_t, timesteps, text.context)

    def transformer(self, block: str) -> SpatialTransformer:
        """The spatial transformer of a block."""
        return next(layer for layer in self.model.unet.get_submodule(block) if isinstance(layer, SpatialTransformer))

    def guided(
        self, z_t: Tensor, timesteps: Tensor, context: Tensor, taps: Sequence[str] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The prediction for `z_t` [B, 4, h, w] with classifier-free guidance, and the tapped maps of the captions'
        half. `context` [2B, 77, D] holds B contexts of the empty text, then B of captions."""
        out = self.model.unet(torch.cat([z_t, z_t]), timesteps.repeat(2), context, taps)
        out, maps = out if taps else (out, ())
        empty, said = out.chunk(2)
        return empty + GUIDANCE * (said - empty), tuple(m.chunk(2)[1].clone() for m in maps)

    @torch.inference_mode()
    def sample(
        self,
        caption: str,
        height: int,
        width: int,
        *,
        seed: int = 0,
        taps: Sequence[str] = (),
        asked: Plan | None = None,
        keep: tuple[Tensor, Tensor] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, Features | Queries | None]:
        """Draw `caption` as a scaled latent [1, 4, height/8, width/8], and with it what was captured in passing of the
        caption's own half: no pass is added, and the drawing is the same.

        With `taps` that is their maps in the sampling step nearest to `CAPTURE_AT`; with `asked`, the mean of what the
        layers of that plan ask with in all settled steps. Give one of the two, or neither.
        `keep` = (latent [1, 4, h, w], mask [1, 1, h, w], 1 where to draw anew) holds the rest of a picture still.
        """
        schedule = self.model.schedule
        noise = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(self.device)
        context = self.embed(["", caption]).context
        steps = schedule.steps(STEPS)
        nearest = min(steps, key=lambda t: abs(t - CAPTURE_AT))
        captured: list[Features] = []
        queries, asking = Average(), asked.modules(self.transformer) if asked else {}

        def predict(z_t: Tensor, timesteps: Tensor) -> Tensor:
            if keep is not None:  # in place: the sampler must go on from what was put back
                z_t.copy_(torch.where(keep[1] > 0.5, z_t, schedule.add_noise(keep[0], noise, timesteps)))
            timestep = int(timesteps[0])
            wanted = tuple(taps) if timestep == nearest else ()
            listened = asking if queries.wants(timestep) else {}
            with overhear(listened, keep=lambda output: output.chunk(2)[1]) as heard:
                prediction, maps = self.guided(z_t, timesteps, context, wanted)
            if maps:
                captured.append(Features(maps, wanted, nearest, "caption"))
            if heard:
                queries.add(Queries.of(asked, tuple(z_t.shape[-2:]), heard), timestep)
            return prediction

        z = noise
        for done, (_, latent) in enumerate(schedule.ddim(predict, noise.clone(), steps), start=1):
            z = latent
            if progress:
                progress(done, STEPS)
        if keep is not None:
            z = torch.where(keep[1] > 0.5, z, keep[0])
        return z, captured[0] if captured else queries.mean
