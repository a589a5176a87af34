"""Features taken while ComfyUI samples: the maps of the sampler's own calls, found again by the latent it gave.

A capture rides on a clone of MODEL. It outlives runs, because ComfyUI caches nodes: the sampler may run again with
the same capture, or not at all when only a phrase changed. So every run is stored under the latents it ended in, and
a latent is answered with the features of the run that made it or with none.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy import model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import InputError
from ..features import Features, overhear
from .comfy import read_unet_config, transformer, unwrapped

try:  # ComfyUI since December 2024
    from comfy.patcher_extension import WrappersMP
except ImportError:
    WrappersMP = None

log = logging.getLogger("LD-ZNet")

KEY = "ldznet"
AIM = 400  # of the steps that a sampler takes, the one nearest to this timestep is kept
REASON = (200, 600)  # further from what decoders were trained on, an extra pass gives better masks
LATENTS_KEPT = 64  # 2.8 MB of memory each for SD 1.5 at 512 px in half precision


@dataclass
class _Run:
    """What one sampling run has shown so far: the best call's timestep, grid and maps, rows of the positive prompt."""

    timestep: int = -1
    grid: tuple[int, ...] = ()
    maps: tuple[Tensor, ...] = ()

    def is_worse_than(self, timestep: int, grid: tuple[int, ...]) -> bool:
        if not self.maps:
            return True
        off, was_off = abs(timestep - AIM), abs(self.timestep - AIM)
        # Prompts for an area are computed on a part of the latent, in calls of the same step.
        return off < was_off or (off == was_off and grid[0] * grid[1] > self.grid[0] * self.grid[1])


class Capture:
    """Features of the latents that were sampled with `watch(model)`'s clone, newest last."""

    def __init__(self, model: ModelPatcher):
        self.model = model  # not the clone: it refers to this capture
        self.taps = read_unet_config(model).taps
        self.runs: OrderedDict[str, Features | None] = OrderedDict()
        self.run: _Run | None = None

    def during_run(self, sample: Callable[[], Tensor]) -> Tensor:
        """Sample, then store what was heard. An interrupted run leaves nothing."""
        self.run = _Run()
        try:
            latents = sample()
            self.store(latents, self.run)
        finally:
            self.run = None
        return latents

    def during_call(
        self, call: Callable[[], Tensor], base: BaseModel, x: Tensor, sigma: Tensor, roles: list[int]
    ) -> Tensor:
        """One call of the UNet on `x` [len(roles) * B, 4, h, w]; equal chunks of it, 0 for the positive prompt."""
        timestep = int(base.model_sampling.timestep(sigma[:1].float())[0])
        grid = tuple(x.shape[-2:])
        if self.run is None or 0 not in roles or not self.run.is_worse_than(timestep, grid):
            return call()
        positive = roles.index(0)
        network = unwrapped(base.diffusion_model)
        modules = {tap: transformer(network, tap) for tap in self.taps}
        with overhear(modules, keep=lambda output: output.chunk(len(roles))[positive]) as heard:
            out = call()
        if len(heard) == len(self.taps):
            self.run = _Run(timestep, grid, tuple(heard[tap] for tap in self.taps))
        return out

    def store(self, latents: Tensor, run: _Run) -> None:
        usable = (
            bool(run.maps)
            and REASON[0] <= run.timestep <= REASON[1]
            and run.grid == tuple(latents.shape[-2:])
            and len(run.maps[0]) == len(latents)
        )
        maps = [m.to(model_management.intermediate_device()) for m in run.maps] if usable else []
        for row, latent in enumerate(latents):
            name = fingerprint(latent)
            self.runs.pop(name, None)
            one = tuple(m[row : row + 1].clone() for m in maps)
            self.runs[name] = Features(one, self.taps, run.timestep, "caption") if usable else None
        while len(self.runs) > max(LATENTS_KEPT, len(latents)):
            self.runs.popitem(last=False)

    def features(self, latents: Tensor) -> Features | None:
        """Features of LATENT samples [B, 4, h, w], one row each; None, with a line in the log, where the runs that
        made them passed no fitting step and an extra pass is needed. Raises InputError for latents of no run."""
        names = [fingerprint(latent) for latent in latents]
        strange = [i for i, name in enumerate(names) if name not in self.runs]
        if strange:
            raise InputError(
                f"latent {strange[0] + 1} of {len(latents)} is not one that this capture saw sampled "
                f"(it keeps the last {LATENTS_KEPT}): sample with the MODEL of the Capture node and connect that "
                "sampler's LATENT, unchanged; for any other latent use Segment (LD-ZNet)"
            )
        found = [self.runs[name] for name in names]
        if any(features is None for features in found):
            log.warning(
                "sampling passed no full step near timestep %d, so the features cost an extra pass: "
                "more steps, or a higher denoise, would save it", AIM
            )
            return None
        maps = tuple(torch.cat(maps) for maps in zip(*(f.maps for f in found), strict=True))
        return Features(maps, self.taps, found[0].timestep, "caption")

    @property
    def bytes(self) -> int:
        """Memory that the stored features take."""
        kept = [features for features in self.runs.values() if features]
        return sum(m.numel() * m.element_size() for features in kept for m in features.maps)


def fingerprint(latent: Tensor) -> str:
    """A name for one latent [4, h, w] by its values, in half precision as hosts may pass it on."""
    values = latent.detach().to("cpu", torch.float16).contiguous().numpy()
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def watch(model: ModelPatcher) -> tuple[ModelPatcher, Capture]:
    """A clone of `model` that samples the very same and shows its features to the capture."""
    capture, clone = Capture(model), model.clone()
    if WrappersMP is None:
        _watch_older(clone, capture)
        return clone, capture

    def outer_sample(executor, *args, **kwargs):
        return capture.during_run(lambda: executor(*args, **kwargs))

    def apply_model(executor, *args, **kwargs):
        x, sigma = args[:2]
        options = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        roles = options.get("cond_or_uncond", [])
        return capture.during_call(lambda: executor(*args, **kwargs), executor.class_obj, x, sigma, roles)

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return clone, capture


def _watch_older(clone: ModelPatcher, capture: Capture) -> None:
    """The same where there are no wrappers: around the one slot for UNet calls, and by the last thing that a sampler
    does with its latent. A run that begins is one whose noise level has risen."""
    earlier = clone.model_options.get("model_function_wrapper")
    finish = clone.get_model_object("process_latent_out")
    last = float("inf")

    def unet_call(apply_model, given: dict) -> Tensor:
        nonlocal last
        sigma = float(given["timestep"][0])
        if capture.run is None or sigma > last:
            capture.run = _Run()
        last = sigma

        def call() -> Tensor:
            if earlier:
                return earlier(apply_model, given)
            return apply_model(given["input"], given["timestep"], **given["c"])

        roles = given["cond_or_uncond"]
        return capture.during_call(call, apply_model.__self__, given["input"], given["timestep"], roles)

    def process_latent_out(latent: Tensor) -> Tensor:
        run, capture.run = capture.run, None
        latents = finish(latent)
        if run is not None:
            capture.store(latents, run)
        return latents

    clone.set_model_unet_function_wrapper(unet_call)
    clone.add_object_patch("process_latent_out", process_latent_out)
