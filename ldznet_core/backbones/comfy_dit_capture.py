"""The latents that a sampler had half way, kept while ComfyUI samples with a diffusion transformer.

A transformer's attention to words that are not in the prompt needs a pass of its own. The pass reads the kept latent,
so nothing is hooked into the network while it samples: the sampler's callback shows what it has.
"""

from dataclasses import dataclass

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .comfy import without_frames
from .comfy_capture import KEY, LATENTS_KEPT, Runs, WrappersMP, fingerprint
from .comfy_dit import flow_timestep, network_of
from .families.dit import family_of
from .joint import Noised

NEAR = 300  # thousandths of noise; further off, noise added to the finished latent is better


@dataclass(frozen=True)
class _Kept:
    noised: Noised | None
    fault: str = ""


class TransformerCapture(Runs):
    """The noisy latents of what was sampled with `watch(model)`'s clone, of the step nearest to the timestep of
    its family."""

    @property
    def timestep(self) -> int:
        """The one that suits the family best."""
        return family_of(network_of(self.model)).timestep

    def noised(self, latents: Tensor) -> Noised | None:
        """Those of LATENT samples, one row each; None, with a line in the log, where the runs that made them passed no
        step near enough. Raises InputError for latents of no run."""
        best = self.timestep
        why_not = f"passed no step between {max(0, best - NEAR)} and {best + NEAR} thousandths of noise"
        found = self.kept(latents, lambda kept: kept.noised, why_not, "noise is added to the picture anew")
        if found is None or len({one.timestep for one in found}) > 1:
            return None
        return Noised(torch.cat([one.z for one in found]), found[0].timestep)

    def store(self, latents: Tensor, noised: Noised | None) -> None:
        latents, device = without_frames(latents), model_management.intermediate_device()
        if noised is not None and (noised.z.shape != latents.shape or not noised.z.isfinite().all()):
            noised = None
        for row, latent in enumerate(latents):
            name = fingerprint(latent)
            self.runs.pop(name, None)
            self.runs[name] = _Kept(noised and Noised(noised.row(row).z.to(device, copy=True), noised.timestep))
        while len(self.runs) > max(LATENTS_KEPT, len(latents)):
            self.runs.popitem(last=False)

    @property
    def bytes(self) -> int:
        """Memory that what is stored takes."""
        latents = [kept.noised.z for kept in self.runs.values() if kept.noised]
        return sum(z.numel() * z.element_size() for z in latents)


def watch(model: ModelPatcher) -> tuple[ModelPatcher, TransformerCapture]:
    """A clone of `model` that samples the very same and shows its latents to the capture."""
    capture, clone = TransformerCapture(model), model.clone()
    best = capture.timestep

    def outer_sample(
        executor, noise: Tensor, latent: Tensor, sampler, sigmas: Tensor, mask=None, callback=None, *args, **kwargs
    ) -> Tensor:
        sampling = executor.class_obj.model_patcher.get_model_object("model_sampling")
        timesteps = [flow_timestep(sampling, float(sigma)) for sigma in sigmas[:-1]]
        nearest = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - best), default=None)
        seen: list[Noised] = []

        def shown(step: int, clean: Tensor, z_t: Tensor, steps: int) -> object:
            if step == nearest and abs(timesteps[step] - best) <= NEAR and z_t.ndim == noise.ndim:
                if z_t.ndim == 4 or z_t.shape[2] == 1:
                    seen[:] = [Noised(without_frames(z_t.detach().clone()), timesteps[step])]
            return callback(step, clean, z_t, steps) if callback else None

        latents = executor(noise, latent, sampler, sigmas, mask, shown, *args, **kwargs)
        if latents.ndim == 4 or latents.shape[2] == 1:
            capture.store(latents, seen[0] if seen else None)
        return latents

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return clone, capture
