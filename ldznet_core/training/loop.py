"""The training loop: its length is minutes, so that one recipe fits any machine, or steps, so that runs compare.

It knows nothing of what is trained. A run that is stopped and resumed computes what one without a stop computes, and
several processes compute what one computes.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from .checkpoint import optimizer_tensors, read_shards, restore_optimizers, write_shards
from .ema import EMA
from .hardware import keep_heap
from .muon import Muon, hidden_matrices
from .processes import ALONE, Processes

log = logging.getLogger(__name__)
SAVE_EVERY = 120  # seconds
SAVING_SHARE = 0.05  # of the time may be spent on writing checkpoints


class Paused(Exception):
    """Training ended early because `stop_after` was reached; its checkpoint is whole."""


@dataclass(frozen=True)
class Plan:
    """How long a network trains in all (`minutes`, or `steps` where runs are to be compared), when this run ends
    (`stop_after` minutes), and how.

    On a CPU `minutes` are those that this process computes, so that a busy machine does not end a run untrained; on
    a GPU, and for `stop_after`, they are those of the clock. `parts` is the number of backward passes in a step.
    """

    learning_rate: float
    matrix_rate: float | None = None  # Muon's, for hidden matrices; None leaves them to AdamW
    minutes: float = math.inf
    steps: float = math.inf
    stop_after: float = math.inf
    resume: bool = False
    warm_up: int = 100
    ema: float = 0.999
    weight_decay: float = 0.01
    device: str = "cpu"
    parts: int = 1


@dataclass(frozen=True)
class Moment:
    """Where a run is: the step, counted from 0, the part of the step, and the share of the plan that is done (0..1)."""

    step: int
    part: int
    progress: float


def seconds_of(device: str) -> float:
    """A clock for `Plan.minutes`: computing time a thread on a CPU, wall-clock time elsewhere."""
    if torch.device(device).type == "cpu":
        return time.process_time() / torch.get_num_threads()
    return time.monotonic()


def optimizers_of(network: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters or, where the plan has a rate for Muon, for those that Muon is not for."""
    matrices = hidden_matrices(network) if plan.matrix_rate else []
    taken = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in taken]
    adam = torch.optim.AdamW(
        others, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99), fused=True
    )
    return [adam, Muon(matrices, plan.matrix_rate, plan.weight_decay)] if matrices else [adam]


@dataclass(frozen=True)
class RandomState:
    """The random state of torch and of a data set's generator between two steps."""

    tensors: dict[str, Tensor]  # "r.cpu", "r.cuda": uint8 [N]
    generator: dict | None

    @classmethod
    def of(cls, rng: np.random.Generator | None, device: str) -> "RandomState":
        tensors = {"r.cpu": torch.get_rng_state()}
        if torch.device(device).type == "cuda":
            tensors["r.cuda"] = torch.cuda.get_rng_state(device)
        return cls(tensors, rng and rng.bit_generator.state)

    def restore(self, rng: np.random.Generator | None, device: str) -> None:
        if "r.cpu" in self.tensors:
            torch.set_rng_state(self.tensors["r.cpu"])
        if "r.cuda" in self.tensors and torch.device(device).type == "cuda":
            torch.cuda.set_rng_state(self.tensors["r.cuda"], device)
        if rng and self.generator:
            rng.bit_generator.state = self.generator


def train(
    network: nn.Module,
    loss: Callable[[Moment], Tensor],
    plan: Plan,
    folder: Path,
    report: Callable[[dict[str, Tensor], dict], None] | None = None,
    rng: np.random.Generator | None = None,
    processes: Processes = ALONE,
    after_step: Callable[[Moment, Tensor, dict[str, Tensor]], bool] | None = None,
) -> dict[str, Tensor]:
    """Minimise `loss(moment)` and return the EMA weights.

    The loss of a step is the sum over its parts and over the processes. `folder` holds the checkpoint; a run that is
    interrupted (Ctrl-C included) saves it before it ends. With `plan.resume` the run goes on from it: weights,
    optimisers, EMA, schedule and random state (torch's and that of `rng`, the generator that `loss` samples with). On
    a CPU a plan of steps then has the same losses as without a stop. Checkpoints from before version 0.2 hold no
    optimisers and no random state; they go on with a new warm-up.
    In the main process `after_step(moment, loss, EMA weights)` is called after each step, and ends the run where it
    returns True; `report(weights, {"steps", "minutes", "loss"})` is called once at the end.

    Raises Paused where `plan.stop_after` ended the run early, and InputError where weights are no longer finite or the
    checkpoint is damaged.
    """
    keep_heap()
    ema, optimizers = EMA(network), optimizers_of(network, plan)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    parameters = [p for p in network.parameters() if p.requires_grad]
    spent, step, warm_from = 0.0, 0, 0
    if plan.resume and (folder / "about.json").exists():
        tensors, about = read_shards(folder)
        network.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")}, strict=False)
        for name, value in ema.values.items():
            value.copy_(tensors[f"a.{name}"])
        spent, step = about["seconds"], about["steps"]
        warm_from = about.get("warm_from", 0) if restore_optimizers(optimizers, tensors) else step
        stored = {name: value for name, value in tensors.items() if name.startswith("r.")}
        RandomState(stored, about.get("generator")).restore(rng, plan.device)
    budget = plan.minutes * 60
    started = saved = shown = time.monotonic()
    computed, first, before, recent = seconds_of(plan.device), step, spent, None
    random, whole, save_every, ending = RandomState.of(rng, plan.device), True, SAVE_EVERY, False

    def save() -> None:
        if not processes.main:
            return
        if not all(bool(p.isfinite().all()) for p in network.parameters()):
            raise InputError(
                f"{folder.name}: weights are no longer finite after step {step}; the checkpoint before it is kept: "
                f"train with a lower rate than {plan.learning_rate}"
            )
        state = {f"w.{k}": v for k, v in network.state_dict().items()}
        state |= {f"a.{k}": v for k, v in ema.values.items()}
        state |= optimizer_tensors(optimizers) | random.tensors
        about = {"seconds": spent, "steps": step, "loss": recent, "warm_from": warm_from}
        write_shards(folder, state, {**about, "generator": random.generator})

    def check_finite(value: Tensor) -> None:
        if not value.isfinite():
            raise InputError(
                f"{folder.name}: the loss is {value.item()} at step {step + 1}: train with a lower rate than "
                f"{plan.learning_rate:g}, or in float32, from the checkpoint before it"
            )

    def agree(seconds: float, end: bool) -> tuple[float, bool]:
        """The mean of the processes' seconds, and whether any of them wants to end."""
        if processes.count == 1:
            return seconds, end
        both = torch.tensor([seconds / processes.count, float(end)], dtype=torch.float64, device=plan.device)
        processes.sum([both])
        return both[0].item(), bool(both[1] > 0)

    try:
        while (progress := max(spent / budget, step / plan.steps)) < 1 and not ending:
            if plan.stop_after < math.inf and agree(time.monotonic() - started, False)[0] >= plan.stop_after * 60:
                break
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
            decay *= min(1, (step - warm_from + 1) / plan.warm_up)
            network.zero_grad(set_to_none=True)
            value = torch.zeros((), device=plan.device)
            for part in range(plan.parts):
                share = loss(Moment(step, part, progress))
                share.backward()
                value = value + share.detach()
            if processes.count > 1:
                for p in parameters:  # all processes must send the same
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                processes.sum([value, *(p.grad for p in parameters)])
            if value.device.type == "cpu":  # reading it makes a GPU wait
                check_finite(value)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            whole = False  # interrupted from here on, weights and optimisers belong to no one step
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * decay
                optimizer.step()
            ema.update(network, plan.ema, step)
            step += 1
            random, whole = RandomState.of(rng, plan.device), True
            if after_step and processes.main:
                ending = after_step(Moment(step, 0, progress), value, ema.values)
            spent, ending = agree(before + seconds_of(plan.device) - computed, ending)
            now = time.monotonic()
            if now - shown > 10:
                check_finite(value)
                recent = float(value) if recent is None else 0.7 * recent + 0.3 * float(value)
                rate_now = (step - first) / (now - started)
                log.info("%3.0f %%  step %d  loss %.4f  %.2f steps/s", 100 * progress, step, recent, rate_now)
                shown = now
            if now - saved > save_every:
                save()
                saved = time.monotonic()
                save_every = max(SAVE_EVERY, (saved - now) / SAVING_SHARE)
    finally:
        if whole:
            save()
    if progress < 1 and not ending:
        raise Paused(f"{folder.name}: paused at {100 * progress:.0f} %, go on with --resume")
    averaged = {**network.state_dict(), **ema.values}
    if report and processes.main:
        report(averaged, {"steps": step, "minutes": round(spent / 60, 1), "loss": recent})
    return averaged
