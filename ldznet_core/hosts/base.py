"""What hosts have in common: features by observing a pass and, where torch alone runs the model, the pass itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..features import Features, Text, overhear
from ..networks.decoder import MaskDecoder
from ..schedule import noise_like


class Host:
    """A host gives `name`, `transformer` and `observe`."""

    @torch.inference_mode()
    def extract(
        self,
        z: Tensor,
        text: Text,
        taps: Sequence[str],
        *,
        timestep: int = 400,
        seed: int = 0,
        said: str = "phrase",
    ) -> Features:
        """The tapped maps of `z` [B, 4, h, w] noised to `timestep`, in one pass that ends at the last of them.

        `said` is what `text` says: "phrase", "caption" or "empty".
        """
        heard = self.observe(z, text, {tap: self.transformer(tap) for tap in taps}, timestep=timestep, seed=seed)
        if len(heard) < len(taps):
            raise InputError(f"{self.name} ran without passing {', '.join(t for t in taps if t not in heard)}")
        return Features(tuple(heard[tap] for tap in taps), tuple(taps), timestep, said)


class TorchHost(Host):
    """A host whose networks stay on one `device`; it also gives `schedule` and `predict(z_t, timesteps, text)`."""

    def ready(self, decoder: MaskDecoder, z: Tensor) -> MaskDecoder:
        """The decoder where it can run on `z`."""
        return decoder.to(self.device)

    @torch.inference_mode()
    def observe(
        self, z: Tensor, text: Text, modules: dict[str, nn.Module], *, timestep: int, seed: int = 0
    ) -> dict[str, Tensor]:
        """What parts of the UNet put out for `z` noised to `timestep`, in one pass that ends at the last of them."""
        with overhear(modules, stop=True) as heard:
            self.predict(*self.noised(z, timestep, seed), text)
        return heard

    @torch.inference_mode()
    def denoise(self, z: Tensor, text: Text, *, timestep: int, seed: int = 0) -> Tensor:
        """What the UNet takes for the clean latent in `z` noised to `timestep`, [B, 4, h, w]."""
        z_t, timesteps = self.noised(z, timestep, seed)
        return self.schedule.split(self.predict(z_t, timesteps, text), z_t, timesteps)[0]

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        """A context [B, N, D] through linear layers of the UNet."""
        return [layer(context) for layer in layers]

    def noised(self, z: Tensor, timestep: int, seed: int) -> tuple[Tensor, Tensor]:
        timesteps = torch.full((len(z),), timestep, device=self.device)
        z = z.to(self.device)
        return self.schedule.add_noise(z, noise_like(z, seed), timesteps), timesteps
