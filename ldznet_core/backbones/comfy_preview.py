"""Steps of ComfyUI's sampler shown to a reader now and then, while they are drawn. What is sampled stays the same.

Nothing is added to the network's work: a reader looks at what one call of a step puts out.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .comfy import transformer
from .comfy_capture import WrappersMP
from .comfy_model import options_of, unwrapped
from .recording import record, rows_of

log = logging.getLogger("LD-ZNet")

KEY = "ldznet_preview"
EVERY = 1.0  # seconds between previews, at least
SHARE = 0.05  # of the sampler's time, at most, goes to previews


class Reader(Protocol):
    """Looks at steps."""

    def modules(self, size: tuple[int, int], find: Callable[[str], nn.Module]) -> dict[str, nn.Module]:
        """The parts of the UNet whose outputs it reads, by name, for latents of height and width `size`. `find` gives
        the spatial transformer of a block."""

    def show(
        self, clean: Tensor, outputs: dict[str, Tensor], find: Callable[[str], nn.Module], like: Tensor
    ) -> None:
        """Show one step: its estimate of the clean latents [B, C, h, w], and the outputs of `modules` for the first
        latent under the positive prompt. `like` has device and dtype of the UNet's inputs."""


class Previews:
    """The previews of one MODEL's runs."""

    def __init__(self, reader: Reader):
        self.reader = reader
        self.is_on = False
        self.due = 0.0  # time of the next preview
        self.outputs: dict[str, Tensor] = {}
        self.base: BaseModel | None = None
        self.like: Tensor | None = None

    def during_run(self, sample: Callable[[], Tensor]) -> Tensor:
        self.is_on, self.due = True, 0.0
        try:
            return sample()
        finally:
            self.is_on, self.outputs, self.base, self.like = False, {}, None, None

    def during_call(self, call: Callable[[], Tensor], base: BaseModel, x: Tensor, roles: list[int]) -> Tensor:
        """One call of the UNet on `x` [len(roles) * B, C, h, w]: equal chunks, each of the prompt of that number. The
        positive prompt is number 0."""
        if not self.is_on or self.outputs or 0 not in roles or time.monotonic() < self.due or x.ndim != 4:
            return call()
        self.base, self.like = base, x
        first = roles.index(0) * len(x) // len(roles)
        modules = self.reader.modules(tuple(x.shape[-2:]), self.find)
        with record(modules, rows_of(x, slice(first, first + 1))) as outputs:
            prediction = call()
        self.outputs = outputs
        return prediction

    def find(self, block: str) -> nn.Module:
        return transformer(unwrapped(self.base.diffusion_model), block)

    def after_step(self, clean: Tensor) -> None:
        outputs, self.outputs = self.outputs, {}
        if not outputs:
            return
        began = time.monotonic()
        dtype = self.base.manual_cast_dtype or self.base.get_dtype()
        try:
            self.reader.show(clean, outputs, self.find, self.like.new_empty(0, dtype=dtype))
        except RuntimeError as error:  # too little memory, say: the picture is worth more than its previews
            log.warning("no more previews of words in this run: %s", error)
            self.is_on = False
        now = time.monotonic()
        self.due = now + max(EVERY, (now - began) / SHARE)


def add_previews(model: ModelPatcher, reader: Reader) -> None:
    """Show `model`'s steps to the reader. A line in the log says where ComfyUI is too old for it."""
    if WrappersMP is None:
        log.warning("previews of words need a newer ComfyUI: update it")
        return
    previews = Previews(reader)

    def outer_sample(
        executor, noise: Tensor, latent: Tensor, sampler, sigmas: Tensor, mask=None, callback=None, *args, **kwargs
    ) -> Tensor:
        def shown(step: int, clean: Tensor, z: Tensor, steps: int) -> object:
            result = callback(step, clean, z, steps) if callback else None
            previews.after_step(clean)
            return result

        return previews.during_run(lambda: executor(noise, latent, sampler, sigmas, mask, shown, *args, **kwargs))

    def apply_model(executor, *args, **kwargs) -> Tensor:
        roles = options_of(args, kwargs).get("cond_or_uncond", [])
        return previews.during_call(lambda: executor(*args, **kwargs), executor.class_obj, args[0], roles)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
