"""Noise schedules, Stable Diffusion's and rectified flow: how a clean latent is noised, and what a prediction says of
it.

Timesteps are integers 0..999; 0 is almost clean. Tensors in, tensors out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1] in the device and precision of `like`."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def noise_like(z: Tensor, seed: int) -> Tensor:
    """Unit Gaussian noise drawn on the CPU, one draw for all rows: the same on every device and in every batch."""
    generator = torch.Generator().manual_seed(seed % 2**64)  # seeds are counted up, past the largest too
    return torch.randn(z.shape[1:], generator=generator).to(z).expand_as(z)


class Noising:
    """What noise schedules have in common. A subclass gives `scales` of signal and noise at a timestep, and `split`,
    what a prediction says of the two."""

    def add_noise(self, z: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self.scales(timesteps, z)
        return signal * z + sigma * noise

    def steps(self, count: int, start: int = 999) -> list[int]:
        """`count` timesteps, from `start` to 0, evenly spaced."""
        return torch.linspace(start, 0, count).round().long().tolist()

    def ddim(
        self, predict: Callable[[Tensor, Tensor], Tensor], z: Tensor, steps: list[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Denoise `z` [B, 4, h, w], noised to `steps[0]`, by DDIM (Song et al., 2021, eta 0), which for a flow is
        Euler's method.

        `predict(z_t, timesteps [B])` is the network with its guidance. Yields (timestep, latent after that step).
        """
        for t, following in zip(steps, [*steps[1:], None], strict=True):
            timesteps = torch.full((z.shape[0],), t, device=z.device)
            clean, noise = self.split(predict(z, timesteps), z, timesteps)
            if following is None:
                z = clean
            else:
                z = self.add_noise(clean, noise, torch.full_like(timesteps, following))
            yield t, z


@dataclass(frozen=True)
class Schedule(Noising):
    """`alphas_cumprod` [1000] in float32 and what the UNet predicts: "eps" or "v"."""

    alphas_cumprod: Tensor
    prediction: str = "eps"

    @classmethod
    def stable_diffusion(cls, prediction: str = "eps") -> "Schedule":
        """betas = linspace(sqrt(0.00085), sqrt(0.012), 1000)^2, in double precision."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return cls((1 - betas).cumprod(0).float(), prediction)

    def scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod) at `timesteps` [B], broadcastable to `like`."""
        a = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return per_sample(a.sqrt(), like), per_sample((1 - a).sqrt(), like)

    def velocity(self, z: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The v-prediction target (Salimans and Ho, 2022)."""
        signal, sigma = self.scales(timesteps, z)
        return signal * noise - sigma * z

    def split(self, prediction: Tensor, z_t: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that a prediction implies."""
        signal, sigma = self.scales(timesteps, z_t)
        if self.prediction == "v":
            return signal * z_t - sigma * prediction, sigma * z_t + signal * prediction
        return (z_t - sigma * prediction) / signal, prediction


class Flow(Noising):
    """Rectified flow (Esser et al., 2024): the share of noise is sigma = timestep / 1000, and the network predicts the
    velocity noise - z."""

    prediction = "flow"

    def scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 - sigma and sigma at `timesteps` [B], broadcastable to `like`."""
        sigma = per_sample(timesteps / 1000, like)
        return 1 - sigma, sigma

    def split(self, prediction: Tensor, z_t: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that a prediction implies."""
        signal, sigma = self.scales(timesteps, z_t)
        return z_t - sigma * prediction, z_t + signal * prediction
