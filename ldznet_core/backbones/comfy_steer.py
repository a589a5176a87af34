"""Regions by words in ComfyUI: a CONDITIONING that acts where its words are being drawn.

Everything rides on the CONDITIONING. Its hook wraps each run of whatever sampler takes it, and what is known of a run
lives in that run's own copy of the options, so that nothing stays behind, whichever way the run ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..errors import InputError
from .comfy import ComfyBackbone, transformer
from .comfy_model import options_of, timestep_of, unwrapped
from .recording import Text, record, rows_of
from .steering import Reader, Region, Step, Tracker, weight

try:  # ComfyUI since December 2024
    from comfy.hooks import HookGroup, TransformerOptionsHook
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
except ImportError:
    TransformerOptionsHook = None

KEY = "ldznet_region"
LEAST = 1e-6  # the weight of a region's prompt where no other prompt draws


@dataclass(frozen=True, eq=False)
class Marked:
    """What a CONDITIONING with a region carries: its words, encoded, and what finds them in a run."""

    region: Region
    texts: dict[str, Text]
    open_reader: Callable[[ComfyBackbone], Reader]


def mark(conditioning: list, marked: Marked, decoder: ModelPatcher | None = None) -> list:
    """A copy of a CONDITIONING that acts where the words of `marked` are being drawn. ComfyUI loads the decoder, if
    any, together with the model. Raises InputError in versions of ComfyUI that have no hooks."""
    if TransformerOptionsHook is None:
        raise InputError("regions by words need hooks of conditionings: update ComfyUI to a version of 2025 or later")
    copies = []
    for context, options in conditioning:
        options = {**options, KEY: marked, "hooks": with_hook(options.get("hooks"))}
        if decoder is not None:
            options["additional_models"] = [*options.get("additional_models", []), decoder]
        copies.append([context, options])
    return copies


def with_hook(hooks: "HookGroup | None") -> "HookGroup":
    group = HookGroup() if hooks is None else hooks.clone()
    group.add(HOOK)  # once: hooks are compared by their reference
    return group


class RunningBackbone(ComfyBackbone):
    """The model of a run while it samples. It is loaded already, and texts are those that were encoded before."""

    def __init__(self, model: ModelPatcher, texts: dict[str, Text]):
        self.model, self.texts = model, texts

    def embed(self, texts: Sequence[str]) -> Text:
        rows = [self.texts[text] for text in texts]
        context, width = torch.cat([row.context for row in rows]), self.unet_config.context_dim
        if context.shape[-1] != width:
            raise InputError(
                f"the CLIP of Set Words writes texts of width {context.shape[-1]}, but {self.name} reads {width}: "
                "use the CLIP that came with the model"
            )
        return Text(context, None, sum((row.lengths for row in rows), ()))

    def transformer(self, block: str) -> nn.Module:
        return transformer(unwrapped(self.model.model.diffusion_model), block)

    @torch.inference_mode()
    def project(self, context: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
        base = self.model.model
        self.model.apply_hooks(None)  # keys are the model's own, without LoRAs of some prompt
        context = context.to(self.model.load_device, base.manual_cast_dtype or base.get_dtype())
        return [layer(context) for layer in layers]

    def ready(self, decoder: nn.Module, z: Tensor) -> nn.Module:
        return decoder.to(self.model.load_device)


class Run:
    """One run of a sampler with regions."""

    def __init__(self, guider):
        self.guider = guider
        self.trackers: dict[Marked, Tracker] = {}
        self.groups: dict[frozenset, HookGroup | None] = {frozenset(): None}  # by the hooks in them
        for cond in (cond for conds in guider.conds.values() for cond in conds):
            if KEY not in cond:
                if "hooks" in cond:
                    self.groups.setdefault(frozenset(cond["hooks"].hooks), cond["hooks"])
            elif (marked := cond[KEY]).region.strength and marked not in self.trackers:
                backbone = RunningBackbone(guider.model_patcher, marked.texts)
                self.trackers[marked] = Tracker(marked.region, marked.open_reader(backbone))
        self.shown: Step | None = None  # the latest step that regions are read from
        self.prompt: dict = {}  # the one whose rows are recorded
        self.outputs: dict[str, Tensor] = {}
        self.context: Tensor | None = None
        self.shares: dict[Marked, Tensor] = {}
        self.size: tuple[int, ...] = ()
        self.wanted = self.recorded = False

    def during_step(self, compute: Callable[[], Tensor], x: Tensor, sigma: Tensor, sigmas: Tensor) -> Tensor:
        """One step on `x` [B, C, h, w] at a noise level of the run's `sigmas`. Its result is the guided estimate of the
        clean latent."""
        sampling, now = self.guider.inner_model.model_sampling, float(sigma.flatten()[0])
        following = max((s for s in sigmas.tolist() if s < now), default=0.0)
        self.size, self.shares, self.outputs = tuple(x.shape), {}, {}
        self.wanted = self.recorded = False
        for marked, tracker in self.trackers.items():
            start = sampling.percent_to_sigma(marked.region.start)
            if now <= start:
                if self.shown is not None:
                    tracker.read(self.shown)
                if (share := tracker.share()) is not None:
                    self.shares[marked] = share
            self.wanted |= 0 < following <= start and not tracker.is_settled
        clean = compute()
        if self.recorded:
            self.shown = Step(clean.float(), timestep_of(sampling, sigma.flatten()[:1]), self.outputs, self.context)
        return clean

    def during_prompts(self, compute: Callable[[list], object], prompts: list, x: Tensor, sigma: Tensor) -> object:
        """The predictions of a step under `prompts`, a list of prompts for each role."""
        now = float(sigma.flatten()[0])
        roles = [conds for conds in prompts if conds]
        positive = self.guider.conds.get("positive")
        read = next((conds for conds in roles if conds is positive), roles[0] if roles else [])
        bases = [cond for cond in read if KEY not in cond and "area" not in cond and is_active(cond, now)] or read
        self.prompt = next((cond for cond in bases if "cross_attn" in cond), {})
        return compute([conds if conds is None else self.weighted(conds, x, now) for conds in prompts])

    def weighted(self, conds: list[dict], x: Tensor, now: float) -> list[dict]:
        """The prompts of one role with the weights that regions give them. A region's prompt that has no share is left
        out, unless no other prompt draws."""
        if not any(KEY in cond for cond in conds):
            return conds
        has_base = any(KEY not in cond and is_active(cond, now) for cond in conds)
        weighted = []
        for cond in conds:
            if KEY in cond:
                share = self.shares.get(cond[KEY])
                if share is not None and len(share) != len(x):  # a part of the batch, of which part we cannot know
                    share = None
                if share is None and has_base:
                    continue
                cond = with_hooks(cond, self.group(cond["hooks"])) if "hooks" in cond else cond
                cond = cond if share is None else with_share(cond, share, 0.0 if has_base else LEAST)
            weighted.append(cond)
        return weighted

    def group(self, hooks: "HookGroup") -> "HookGroup | None":
        """Hooks without ours, in one group for all prompts that have the same: these share calls of the UNet."""
        rest = [hook for hook in hooks.hooks if hook != HOOK]
        if frozenset(rest) not in self.groups:
            group = self.groups[frozenset(rest)] = HookGroup()
            for hook in rest:
                group.add(hook)
        return self.groups[frozenset(rest)]

    def during_call(self, call: Callable[[], Tensor], base: BaseModel, x: Tensor, options: dict) -> Tensor:
        """One call of the UNet on `x`: equal chunks, each of the prompt of one uuid. The first call of a step that
        shows the prompt to be read is recorded."""
        uuids = options.get("uuids", [])
        if not self.wanted or self.recorded or self.prompt.get("uuid") not in uuids:
            return call()
        if tuple(x.shape[1:]) != self.size[1:] or len(x) != self.size[0] * len(uuids):
            return call()  # a part of the latent or of the batch
        network, count = unwrapped(base.diffusion_model), self.size[0]
        first = uuids.index(self.prompt["uuid"]) * count
        modules: dict[str, nn.Module] = {}
        for tracker in self.trackers.values():
            if not tracker.is_settled:
                modules |= tracker.reader.modules(self.size[-2:], lambda block: transformer(network, block))
        with record(modules, rows_of(x, slice(first, first + count))) as outputs:
            prediction = call()
        self.outputs = {name: output.to(x.device) for name, output in outputs.items()}
        self.context, self.recorded = self.prompt["cross_attn"][:1], True
        return prediction


def is_active(cond: dict, sigma: float) -> bool:
    """Whether a prompt draws at a noise level."""
    return cond.get("timestep_end", 0.0) <= sigma <= cond.get("timestep_start", sigma)


def with_hooks(cond: dict, hooks: "HookGroup | None") -> dict:
    rest = {key: value for key, value in cond.items() if key != "hooks"}
    return rest if hooks is None else {**rest, "hooks": hooks}


def with_share(cond: dict, share: Tensor, least: float) -> dict:
    """A prompt that has a share [B, h, w] of the picture, inside its own mask where it has one. Where other prompts
    draw, their weights are taken to sum to 1."""
    if "mask" in cond:
        mask = cond["mask"][: len(share)] * cond.get("mask_strength", 1.0)
        share = (share * mask.repeat(len(share) // len(mask), 1, 1)).clamp(max=1)
    return {**cond, "mask": weight(share).clamp(min=least), "mask_strength": 1.0}


def outer_sample(executor, *args, **kwargs):
    """Begins a run. What it adds to the options is in the copy that the guider drops when the run ends."""
    guider = executor.class_obj
    run = Run(guider)

    def predict_noise(executor, x, sigma, options=None, *rest, **named):
        options = named.pop("model_options", options) or {}
        # Where no schedule is given, the next step is taken to be half as noisy.
        sigmas = options.get("transformer_options", {}).get("sample_sigmas", sigma / 2)
        return run.during_step(lambda: executor(x, sigma, options, *rest, **named), x, sigma, sigmas)

    def calc_cond_batch(executor, model, prompts, x, sigma, *rest, **named):
        def compute(weighted: list) -> object:
            return executor(model, weighted, x, sigma, *rest, **named)

        return run.during_prompts(compute, prompts, x, sigma)

    def apply_model(executor, *args, **kwargs):
        options = options_of(args, kwargs)
        return run.during_call(lambda: executor(*args, **kwargs), executor.class_obj, args[0], options)

    for kind, wrapper in (
        (WrappersMP.PREDICT_NOISE, predict_noise),
        (WrappersMP.CALC_COND_BATCH, calc_cond_batch),
        (WrappersMP.APPLY_MODEL, apply_model),
    ):
        add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)
    return executor(*args, **kwargs)


HOOK = TransformerOptionsHook and TransformerOptionsHook(
    {"wrappers": {WrappersMP.OUTER_SAMPLE: {KEY: [outer_sample]}}}
)
