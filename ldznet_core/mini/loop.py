"""A training loop whose schedule is minutes, not steps, so that the same recipe fits any machine.

It saves itself in small pieces, resumes where it stopped, and knows nothing of what is trained.
"""

import ctypes
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from ..files import replacing
from .muon import Muon, hidden_matrices

log = logging.getLogger(__name__)
PIECE_BYTES = 15 * 2**20
SAVE_EVERY = 120  # seconds


class Paused(Exception):
    """Training ended early because `stop_after` was reached; its checkpoint is whole."""


@dataclass(frozen=True)
class Plan:
    """How long a step trains in all (`minutes`, or `steps` where runs are to be compared), when this run ends
    (`stop_after` minutes), and how."""

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


def keep_heap() -> None:
    """Keep freed memory in the process: returning and fetching it each step costs a third of a CPU step's time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # no mmap, no trimming, grow by 256 MiB
        mallopt(option, value)


def write_pieces(folder: Path, tensors: Mapping[str, Tensor], about: dict) -> None:
    """Write tensors as `piece-0.safetensors`, ... of at most 15 MiB each, then `about.json`, which makes them valid."""
    pieces: list[dict[str, Tensor]] = [{}]
    room = PIECE_BYTES
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if pieces[-1] and tensor.nbytes > room:
            pieces.append({})
            room = PIECE_BYTES
        pieces[-1][name] = tensor
        room -= tensor.nbytes
    about = {**about, "pieces": len(pieces), "stamp": time.time_ns()}
    for i, piece in enumerate(pieces):
        with replacing(folder / f"piece-{i}.safetensors") as unfinished:
            save_file(piece, unfinished, {"stamp": str(about["stamp"])})
    with replacing(folder / "about.json") as unfinished:
        unfinished.write_text(json.dumps(about, indent=1))


def read_pieces(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """What `write_pieces` wrote. Raises InputError where there is nothing or a piece is missing."""
    try:
        about = json.loads((folder / "about.json").read_text())
        tensors: dict[str, Tensor] = {}
        for i in range(about["pieces"]):
            tensors.update(load_file(folder / f"piece-{i}.safetensors"))
    except Exception as error:
        raise InputError(f"{folder} holds no whole checkpoint ({error}): run the step before it first") from None
    return tensors, about


def half_precision(device: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def compile_on_gpu(device: str, *networks: nn.Module) -> None:
    """These networks are small: on a GPU launching their kernels costs more than the arithmetic."""
    if torch.device(device).type == "cuda":
        for network in networks:
            network.compile()


class Average:
    """Exponential moving average of a network's parameters."""

    def __init__(self, network: nn.Module):
        self.values = {k: v.detach().clone() for k, v in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float, step: int) -> None:
        decay = min(decay, (1 + step) / (10 + step))
        ours = list(self.values.values())
        theirs = [p.detach() for p in network.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)


def optimizers_of(network: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    matrices = hidden_matrices(network) if plan.matrix_rate else []
    taken = {id(p) for p in matrices}
    others = [p for p in network.parameters() if id(p) not in taken]
    adam = torch.optim.AdamW(
        others, lr=plan.learning_rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99), fused=True
    )
    return [adam, Muon(matrices, plan.matrix_rate, plan.weight_decay)] if matrices else [adam]


def train(
    network: nn.Module,
    loss: Callable[[float], Tensor],
    plan: Plan,
    folder: Path,
    report: Callable[[dict[str, Tensor], dict], None] | None = None,
) -> dict[str, Tensor]:
    """Minimise `loss(progress)` (progress 0..1 of the plan's minutes) and return the averaged weights.

    The folder holds the state; an interrupted run (Ctrl-C included) saves before it ends. Raises Paused where
    `plan.stop_after` ended it before the plan was done.
    """
    keep_heap()
    average = Average(network)
    spent, step = 0.0, 0
    if plan.resume and (folder / "about.json").exists():
        tensors, about = read_pieces(folder)
        network.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")}, strict=False)
        for name, value in average.values.items():
            value.copy_(tensors[f"a.{name}"])
        spent, step = about["seconds"], about["steps"]
    budget = plan.minutes * 60
    optimizers = optimizers_of(network, plan)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    started = saved = shown = time.monotonic()
    first, before, recent = step, spent, None

    def save() -> None:
        state = {f"w.{k}": v for k, v in network.state_dict().items()}
        state |= {f"a.{k}": v.half() for k, v in average.values.items()}
        about = {"seconds": spent, "steps": step, "loss": recent}
        write_pieces(folder, state, about)

    try:
        while (progress := max(spent / budget, step / plan.steps)) < 1 and spent - before < plan.stop_after * 60:
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
            decay *= min(1, (step - first + 1) / plan.warm_up)
            value = loss(progress)
            network.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * decay
                optimizer.step()
            average.update(network, plan.ema, step)
            step += 1
            now = time.monotonic()
            spent = before + now - started
            if now - shown > 10:
                recent = float(value.detach()) if recent is None else 0.7 * recent + 0.3 * float(value.detach())
                rate_now = (step - first) / (now - started)
                log.info("%3.0f %%  step %d  loss %.4f  %.2f steps/s", 100 * progress, step, recent, rate_now)
                shown = now
            if now - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
    finally:
        save()
    if progress < 1:
        raise Paused(f"{folder.name}: paused at {100 * progress:.0f} %, go on with --resume")
    averaged = {**network.state_dict(), **average.values}
    if report:
        report(averaged, {"steps": step, "minutes": round(spent / 60, 1), "loss": recent})
    return averaged
