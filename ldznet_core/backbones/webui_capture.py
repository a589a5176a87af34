"""Features and queries recorded while a WebUI samples, from the UNet calls that it makes in any case.

A capture watches one run of the sampler. Which rows of a call are the positive prompt's is told by the WebUI's own
indices: `A1111Rows` counts rows in the order of its denoiser, `forge_rows` reads what Forge hands to the UNet.
"""

import weakref
from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from ..networks.unet import UNetConfig
from .families.unet import plan
from .queries import Queries
from .recording import Features, rows_of
from .step_recorder import StepRecorder, Wanted
from .webui import transformer

Rows = Callable[[int, dict], list[int] | None]  # of a call's row count and keyword arguments


class Capture:
    """What one run of a sampler shows: the features that are `wanted`, or queries where `queries` says so.

    Hooks are on the UNet from `__init__` to `close`, which is called where the run ends and where a new one begins,
    and when `owner` is collected. `rows` gives the rows of a call that are the positive prompt's, one a picture, or
    None where they are not in it or not known.
    """

    def __init__(self, network: nn.Module, config: UNetConfig, rows: Rows, wanted: Wanted | None = None,
                 queries: bool = False, owner: object = None):
        self.network, self.rows = network, rows
        plan_of = (lambda height, width: plan(config, height, width)) if queries else None
        self.run = StepRecorder([wanted] if wanted else (), plan_of)
        self.calls = 0
        self.open: ExitStack | None = None
        self.handles = [
            network.register_forward_pre_hook(self.before, with_kwargs=True),
            network.register_forward_hook(self.after, always_call=True),
        ]
        if owner is not None:
            weakref.finalize(owner, self.close)

    def close(self) -> None:
        """Take the hooks away. What was recorded stays."""
        self.abandon()
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def before(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        self.abandon()
        self.calls += 1
        x, timesteps = args[0], args[1] if len(args) > 1 else kwargs["timesteps"]
        wanted = self.rows(len(x), kwargs)
        if wanted is None:
            return
        self.open = ExitStack()
        timestep, size = round(float(timesteps[wanted[0]])), tuple(x.shape[-2:])
        self.open.enter_context(
            self.run.step(timestep, size, lambda block: transformer(network, block), rows_of(x, wanted))
        )

    def after(self, network: nn.Module, args: tuple, output: object) -> None:
        if output is None:  # the call raised
            self.abandon()
        elif self.open is not None:
            stack, self.open = self.open, None
            stack.close()

    def abandon(self) -> None:
        """End a call that was not finished, and keep nothing of it."""
        if self.open is not None:
            stack, self.open = self.open, None
            unfinished = RuntimeError("the call was not finished")
            stack.__exit__(type(unfinished), unfinished, None)

    @property
    def pictures(self) -> int:
        """How many pictures the run drew at once; 0 where no step was recorded."""
        for features in self.run.features():
            return len(features.maps[0])
        return len(self.run.sum.cross[0]) if self.run.sum else 0

    def features(self, size: tuple[int, int]) -> Features | None:
        """Maps of latents of that height and width; None where the run passed no fitting step."""
        found = next(iter(self.run.features(size)), None)
        return found if found and all(m.isfinite().all() for m in found.maps) else None

    def queries(self, size: tuple[int, int]) -> Queries | None:
        """Mean queries of latents of that height and width; None where the run passed no fitting step."""
        found = self.run.queries
        if not found or found.size != size:
            return None
        return found if all(q.isfinite().all() for q in (*found.cross, *(found.own or ()))) else None


class A1111Rows:
    """The rows of positive prompts in AUTOMATIC1111's calls. A step's rows are the prompts of every picture in turn,
    several of a picture whose prompt has AND, and after them the negative prompts. They are computed in that order,
    in one call or several. Of a prompt with AND the first part counts."""

    def __init__(self):
        self.first: list[int] | None = None
        self.passed = 0

    def begin_step(self, params) -> None:
        """`params` are those of the callback `on_cfg_denoiser`."""
        self.first, self.passed = None, 0
        conditionings = params.denoiser.sampler.sampler_extra_args["cond"]
        counts = [len(prompts) for prompts in conditionings.batch]
        if len(params.x) != sum(counts) + len(counts):
            return  # not the usual prompts: an editing model's, or another extension's
        self.first = [sum(counts[:i]) for i in range(len(counts))]

    def __call__(self, rows: int, kwargs: dict) -> list[int] | None:
        start, self.passed = self.passed, self.passed + rows
        if self.first is None or not all(start <= row < start + rows for row in self.first):
            return None
        return [row - start for row in self.first]


def forge_rows(rows: int, kwargs: dict) -> list[int] | None:
    """The rows of positive prompts in a call of Forge's, by the roles of its equal chunks: 0 is the positive prompt,
    1 the negative one. Of a prompt with AND the first part counts, which comes last."""
    roles = (kwargs.get("transformer_options") or {}).get("cond_or_uncond") or []
    if 0 not in roles or rows % len(roles):
        return None
    each, place = rows // len(roles), len(roles) - 1 - roles[::-1].index(0)
    return list(range(place * each, (place + 1) * each))
