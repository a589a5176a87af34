"""Features and queries taken while ComfyUI samples: of the sampler's own calls, found again by the latent it gave.

A capture rides on a clone of MODEL. It outlives runs, because ComfyUI caches nodes: the sampler may run again with
the same capture, or not at all when only a phrase changed. So every run is stored under the latents it ended in, and
a latent is answered with the features of the run that made it or with none.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from comfy import model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import InputError
from ..features import Features, overhear
from ..queries import SETTLED, Average, Queries, plan
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
QUERIES_KEPT = 16  # 15 MB each


@dataclass
class _Run:
    """What one sampling run has shown so far, in rows of the positive prompt: the best call's timestep, grid and maps,
    and the queries of all its settled steps."""

    timestep: int = -1
    grid: tuple[int, ...] = ()
    maps: tuple[Tensor, ...] = ()
    queries: Average = field(default_factory=Average)

    def wants_maps(self, timestep: int, grid: tuple[int, ...]) -> bool:
        if not self.maps:
            return True
        off, was_off = abs(timestep - AIM), abs(self.timestep - AIM)
        # Prompts for an area are computed on a part of the latent, in calls of the same step.
        return off < was_off or (off == was_off and grid[0] * grid[1] > self.grid[0] * self.grid[1])

    def wants_queries(self, timestep: int, grid: tuple[int, ...]) -> bool:
        known = self.queries.sum
        if known is None or known.size == grid:
            return self.queries.wants(timestep)
        return timestep <= SETTLED and grid[0] * grid[1] > known.size[0] * known.size[1]


@dataclass(frozen=True)
class _Kept:
    """What is known of one latent; None where its run passed no step that shows it."""

    features: Features | None
    queries: Queries | None


class Capture:
    """Features and queries of the latents that were sampled with `watch(model)`'s clone, newest last."""

    def __init__(self, model: ModelPatcher):
        self.model = model  # not the clone: it refers to this capture
        self.sizes = read_unet_config(model)
        self.taps = self.sizes.taps
        self.runs: OrderedDict[str, _Kept] = OrderedDict()
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
        if self.run is None or 0 not in roles:
            return call()
        timestep, grid = int(base.model_sampling.timestep(sigma[:1].float())[0]), tuple(x.shape[-2:])
        network, modules = unwrapped(base.diffusion_model), {}
        if wants_maps := self.run.wants_maps(timestep, grid):
            modules |= {tap: transformer(network, tap) for tap in self.taps}
        if wants_queries := self.run.wants_queries(timestep, grid):
            chosen = plan(self.sizes, *grid)
            modules |= chosen.modules(lambda block: transformer(network, block))
        if not modules:
            return call()
        positive = roles.index(0)

        def keep(output: Tensor) -> Tensor:
            # Extensions for prompts of regions put more rows through attention: whose they are, we cannot know.
            return output.chunk(len(roles))[positive] if len(output) == len(x) else output[:0]

        with overhear(modules, keep) as heard:
            out = call()
        heard = {name: output for name, output in heard.items() if len(output)}
        if wants_maps and all(tap in heard for tap in self.taps):
            self.run.timestep, self.run.grid = timestep, grid
            self.run.maps = tuple(heard[tap] for tap in self.taps)
        if wants_queries and (queries := Queries.of(chosen, grid, heard)):
            self.run.queries.add(queries, timestep)
        return out

    def store(self, latents: Tensor, run: _Run) -> None:
        size, device = tuple(latents.shape[-2:]), model_management.intermediate_device()
        features, queries, near = None, run.queries.mean, REASON[0] <= run.timestep <= REASON[1]
        if run.maps and near and run.grid == size and len(run.maps[0]) == len(latents):
            features = Features(tuple(m.to(device) for m in run.maps), self.taps, run.timestep, "caption")
        if queries and queries.size == size and len(queries) == len(latents):
            queries = queries.map(lambda tensor: tensor.to(device))
        else:
            queries = None
        for row, latent in enumerate(latents):
            name = fingerprint(latent)
            self.runs.pop(name, None)
            # Copies, so that one latent that is kept does not hold its whole batch.
            maps = features and tuple(m[row : row + 1].clone() for m in features.maps)
            self.runs[name] = _Kept(
                features and replace(features, maps=maps), queries and queries.row(row).map(Tensor.clone)
            )
        while len(self.runs) > max(LATENTS_KEPT, len(latents)):
            self.runs.popitem(last=False)
        for name in list(self.runs)[: -max(QUERIES_KEPT, len(latents))]:
            self.runs[name] = replace(self.runs[name], queries=None)

    def features(self, latents: Tensor) -> Features | None:
        """Features of LATENT samples [B, 4, h, w], one row each; None, with a line in the log, where the runs that
        made them passed no fitting step and an extra pass is needed. Raises InputError for latents of no run."""
        found = self.kept(latents, "features", f"passed no full step near timestep {AIM}")
        if found is None:
            return None
        maps = tuple(torch.cat(maps) for maps in zip(*(f.maps for f in found), strict=True))
        return Features(maps, self.taps, found[0].timestep, "caption")

    def queries(self, latents: Tensor) -> Queries | None:
        """Mean queries of LATENT samples, as `features`."""
        found = self.kept(latents, "queries", f"passed no full step below timestep {SETTLED}, or is long past")
        return found and Queries.joined(found)

    def kept(self, latents: Tensor, what: str, why_not: str) -> list | None:
        names = [fingerprint(latent) for latent in latents]
        strange = [i for i, name in enumerate(names) if name not in self.runs]
        if strange:
            raise InputError(
                f"latent {strange[0] + 1} of {len(latents)} is not one that this capture saw sampled "
                f"(it keeps the last {LATENTS_KEPT}): sample with the MODEL of the Capture node and connect that "
                "sampler's LATENT, unchanged; for any other latent use Segment (LD-ZNet), or Attention Mask without a "
                "capture"
            )
        found = [getattr(self.runs[name], what) for name in names]
        if any(one is None for one in found):
            log.warning(
                "sampling %s, so the %s cost an extra pass: more steps, or a higher denoise, would save it",
                why_not,
                what,
            )
            return None
        return found

    @property
    def bytes(self) -> int:
        """Memory that what is stored takes."""
        tensors = []
        for kept in self.runs.values():
            tensors += kept.features.maps if kept.features else ()
            tensors += (*kept.queries.cross, *(kept.queries.own or ())) if kept.queries else ()
        return sum(t.numel() * t.element_size() for t in tensors)


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
