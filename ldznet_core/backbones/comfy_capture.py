"""Features and queries recorded while ComfyUI samples, found again by the latent that the sampler put out.

A capture rides on a clone of MODEL. It outlives runs, because ComfyUI caches nodes: the sampler may run again with
the same capture, or not at all when only a phrase changed. So every run is stored under the latents it ended in, and
a latent is answered with the features of the run that made it or with none.
"""

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from comfy import model_management
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..errors import InputError
from ..networks.taps import light_sources
from .comfy import transformer, without_frames
from .comfy_model import options_of, read_facts, read_unet_config, timestep_of, unwrapped
from .families.unet import plan
from .queries import Queries
from .recording import Features, rows_of
from .step_recorder import SETTLED, StepRecorder, Wanted

try:  # ComfyUI since December 2024
    from comfy.patcher_extension import WrappersMP
except ImportError:
    WrappersMP = None

log = logging.getLogger("LD-ZNet")

KEY = "ldznet"
LDZNET, LIGHT = 400, 50  # the best timesteps of the kinds of decoder
LATENTS_KEPT = 64  # 2.8 MB of memory each for SD 1.5 at 512 px in half precision
QUERIES_KEPT = 16  # 15 MB each, and 6 MB for what a light decoder reads
UNKNOWN = "was guided by several prompts, and which of them is the positive one is not known"
NOT_FINITE = "computed values that are not finite (NaN or infinity)"


@dataclass(frozen=True)
class _Kept:
    """What is known of one latent; nothing where its run passed no step that shows it. `fault` says what else was in
    the way, or is empty."""

    features: tuple[Features, ...]
    queries: Queries | None
    fault: str = ""


class Runs:
    """What was kept of sampled latents, by their `fingerprint`, newest last."""

    def __init__(self, model: ModelPatcher):
        self.model = model  # not the clone: it refers to this capture
        self.runs: OrderedDict[str, object] = OrderedDict()

    def kept(self, latents: Tensor, read: Callable[[object], object], why_not: str, instead: str) -> list | None:
        """What `read` finds in what was kept of each latent; None, with a line in the log of why and what happens
        instead, where one lacks it. Raises InputError for latents of no run."""
        names = [fingerprint(latent) for latent in without_frames(latents)]
        strange = [i for i, name in enumerate(names) if name not in self.runs]
        if strange:
            raise InputError(
                f"latent {strange[0] + 1} of {len(latents)} is not one that this capture saw sampled "
                f"(it keeps the last {LATENTS_KEPT}): sample with the MODEL of the Capture node and connect that "
                "sampler's LATENT, unchanged; for any other latent use Segment (LD-ZNet), or Segment without Decoder "
                "with no capture"
            )
        found = [read(self.runs[name]) for name in names]
        if any(one is None for one in found):
            fault = next((kept.fault for kept in map(self.runs.get, names) if kept.fault), "")
            advice = "" if fault else ": more steps, or a higher denoise, would save it"
            log.warning("sampling %s, so %s%s", fault or why_not, instead, advice)
            return None
        return found


class Capture(Runs):
    """Features and queries of the latents that were sampled with `watch(model)`'s clone, newest last."""

    def __init__(self, model: ModelPatcher):
        super().__init__(model)
        self.sizes = read_unet_config(model)
        light = light_sources(self.sizes, math.isqrt(read_facts(model).native_area))
        self.wanted = Wanted(self.sizes.taps, LDZNET), Wanted(tuple(source.tap for source in light), LIGHT)
        self.run: StepRecorder | None = None
        self.guider: object | None = None
        self.positive: int | None = 0  # the positive prompt's place among the prompts of the sampler's current step
        self.fault = ""

    def begin(self, guider: object | None = None) -> None:
        self.run = StepRecorder(self.wanted, lambda height, width: plan(self.sizes, height, width))
        self.guider, self.positive, self.fault = guider, 0, ""

    def during_run(self, sample: Callable[[], Tensor], guider: object) -> Tensor:
        """Sample, then store what was recorded. An interrupted run leaves nothing."""
        self.begin(guider)
        try:
            latents = sample()
            self.store(latents, self.run)
        finally:
            self.run = self.guider = None
        return latents

    def during_step(self, compute: Callable[[], object], prompts: list) -> object:
        """One step of the sampler under `prompts`, whose order is the guider's own. The positive one is the very list
        that the guider has under that name."""
        positive = getattr(self.guider, "conds", {}).get("positive")
        self.positive = next((i for i, one in enumerate(prompts) if one is not None and one is positive), None)
        if self.positive is None:
            self.fault = UNKNOWN
        return compute()

    def during_call(
        self, call: Callable[[], Tensor], base: BaseModel, x: Tensor, sigma: Tensor, roles: list[int]
    ) -> Tensor:
        """One call of the UNet on `x` [len(roles) * B, C, h, w]: equal chunks, each of the prompt of that number."""
        if self.run is None or self.positive not in roles:
            return call()
        network, count = unwrapped(base.diffusion_model), len(x) // len(roles)
        first = roles.index(self.positive) * count
        positive_rows = rows_of(x, slice(first, first + count))
        timestep, size = timestep_of(base.model_sampling, sigma[:1]), tuple(x.shape[-2:])
        with self.run.step(timestep, size, lambda block: transformer(network, block), positive_rows):
            return call()

    def store(self, latents: Tensor, run: StepRecorder) -> None:
        size, device = tuple(latents.shape[-2:]), model_management.intermediate_device()
        features, queries, fault = run.features(size), run.queries, self.fault
        features = tuple(f for f in features if len(f.maps[0]) == len(latents))
        if queries and not (queries.size == size and len(queries) == len(latents)):
            queries = None
        finite = tuple(f for f in features if all(m.isfinite().all() for m in f.maps))
        if len(finite) < len(features):
            features, fault = finite, NOT_FINITE
        if queries and not all(q.isfinite().all() for q in (*queries.cross, *(queries.own or ()))):
            queries, fault = None, NOT_FINITE
        features = [replace(f, maps=tuple(m.to(device) for m in f.maps)) for f in features]
        queries = queries and queries.map(lambda tensor: tensor.to(device))
        for row, latent in enumerate(latents):
            name = fingerprint(latent)
            self.runs.pop(name, None)
            # Copies, so that one latent that is kept does not hold its whole batch.
            own = tuple(replace(f, maps=tuple(m[row : row + 1].clone() for m in f.maps)) for f in features)
            self.runs[name] = _Kept(own, queries and queries.row(row).map(Tensor.clone), fault)
        while len(self.runs) > max(LATENTS_KEPT, len(latents)):
            self.runs.popitem(last=False)
        for name in list(self.runs)[: -max(QUERIES_KEPT, len(latents))]:
            kept = self.runs[name]
            small = tuple(f for f in kept.features if f.taps == self.sizes.taps)
            self.runs[name] = replace(kept, queries=None, features=small)

    def features(self, latents: Tensor, taps: Sequence[str] | None = None) -> Features | None:
        """Features of LATENT samples [B, 4, h, w] at `taps` (default: LD-ZNet's), one row each; None, with a line in
        the log, where the runs that made them passed no fitting step, or are long past, and an extra pass is needed.
        Raises InputError for latents of no run."""
        taps = self.sizes.taps if taps is None else tuple(taps)

        def read(kept: _Kept) -> Features | None:
            return next((f.select(taps) for f in kept.features if {*taps} <= {*f.taps}), None)

        near = next((wanted.timestep for wanted in self.wanted if {*taps} <= {*wanted.taps}), LDZNET)
        why_not = f"passed no full step near timestep {near}, or is long past"
        found = self.kept(latents, read, why_not, "the features cost an extra pass")
        if found is None:
            return None
        maps = tuple(torch.cat(maps) for maps in zip(*(f.maps for f in found), strict=True))
        return Features(maps, taps, found[0].timestep, "caption")

    def queries(self, latents: Tensor) -> Queries | None:
        """Mean queries of LATENT samples, as `features`."""
        why_not = f"passed no full step below timestep {SETTLED}, or is long past"
        found = self.kept(latents, lambda kept: kept.queries, why_not, "the queries cost an extra pass")
        return found and Queries.joined(found)

    @property
    def bytes(self) -> int:
        """Memory that what is stored takes."""
        tensors = []
        for kept in self.runs.values():
            tensors += [m for f in kept.features for m in f.maps]
            tensors += (*kept.queries.cross, *(kept.queries.own or ())) if kept.queries else ()
        return sum(t.numel() * t.element_size() for t in tensors)


def fingerprint(latent: Tensor) -> str:
    """A name for one latent [4, h, w] by its values, in half precision, as ComfyUI may pass it on."""
    values = latent.detach().to("cpu", torch.float16).contiguous().numpy()
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def watch(model: ModelPatcher) -> tuple[ModelPatcher, Capture]:
    """A clone of `model` that samples the very same and shows its features to the capture."""
    capture, clone = Capture(model), model.clone()
    if WrappersMP is None:
        _watch_older(clone, capture)
        return clone, capture

    def outer_sample(executor, *args, **kwargs):
        return capture.during_run(lambda: executor(*args, **kwargs), executor.class_obj)

    def calc_cond_batch(executor, model, prompts, *args, **kwargs):
        return capture.during_step(lambda: executor(model, prompts, *args, **kwargs), prompts)

    def apply_model(executor, *args, **kwargs):
        x, sigma = args[:2]
        roles = options_of(args, kwargs).get("cond_or_uncond", [])
        return capture.during_call(lambda: executor(*args, **kwargs), executor.class_obj, x, sigma, roles)

    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, calc_cond_batch)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return clone, capture


def _watch_older(clone: ModelPatcher, capture: Capture) -> None:
    """The same where there are no wrappers: around the one slot for UNet calls, and by the last thing that a sampler
    does with its latent. A run that begins is one whose noise level has risen."""
    earlier = clone.model_options.get("model_function_wrapper")
    finish = clone.get_model_object("process_latent_out")
    last = float("inf")

    def unet_call(apply_model, arguments: dict) -> Tensor:
        nonlocal last
        sigma, roles = arguments["timestep"], arguments["cond_or_uncond"]
        if capture.run is None or float(sigma[0]) > last:
            capture.begin()
        last = float(sigma[0])
        if max(roles) > 1:  # not the usual pair of prompts, positive and negative
            capture.positive, capture.fault = None, UNKNOWN

        def call() -> Tensor:
            if earlier:
                return earlier(apply_model, arguments)
            return apply_model(arguments["input"], sigma, **arguments["c"])

        return capture.during_call(call, apply_model.__self__, arguments["input"], sigma, roles)

    def process_latent_out(latent: Tensor) -> Tensor:
        run, capture.run = capture.run, None
        latents = finish(latent)
        if run is not None:
            capture.store(latents, run if capture.fault != UNKNOWN else StepRecorder())
        return latents

    clone.set_model_unet_function_wrapper(unet_call)
    clone.add_object_patch("process_latent_out", process_latent_out)
