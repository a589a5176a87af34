"""The loop: what it minimises, and that a run in several parts is the run without a stop."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ldznet_core import InputError
from ldznet_core.training import loop
from ldznet_core.training.checkpoint import SHARD_BYTES, read_shards, write_shards
from ldznet_core.training.loop import Moment, Paused, Plan, train


class Killed(Exception):
    """Stands for a process that ends at once, or for Ctrl-C."""


class Run:
    """A tiny training whose data come from torch's generator and from numpy's, and whose losses are kept."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.2), nn.Linear(64, 64), nn.Linear(64, 1))
        self.rng, self.losses = np.random.default_rng(seed), []

    def train(self, plan: Plan, folder, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        def loss(moment: Moment) -> torch.Tensor:
            x = torch.randn(8, 4) + float(self.rng.normal())
            if len(self.losses) == stop_at:
                raise Killed
            value = (self.network(x) - x.sum(1, keepdim=True)).square().mean()
            self.losses.append(value.item())
            return value

        return train(self.network, loss, plan, folder, rng=self.rng)


PLAN = Plan(0.01, matrix_rate=0.05, steps=12, warm_up=4)  # Muon takes the 64x64 matrix, AdamW the rest


def the_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_an_interrupted_run_goes_on_to_the_same_losses_and_weights(tmp_path):
    whole = Run()
    weights = whole.train(PLAN, tmp_path / "whole")
    first = Run()
    with pytest.raises(Killed):
        first.train(PLAN, tmp_path / "parts", stop_at=5)
    second = Run(seed=9)  # another start and other random numbers: all comes from the checkpoint
    again = second.train(replace(PLAN, resume=True), tmp_path / "parts")
    assert first.losses + second.losses == whole.losses
    assert the_same(again, weights)


def test_a_run_killed_between_two_saves_repeats_the_steps_since_the_last(tmp_path, monkeypatch):
    whole = Run()
    weights = whole.train(PLAN, tmp_path / "whole")
    write, saved = loop.write_shards, []

    def once(folder, tensors, about):
        if saved:
            raise Killed  # the process is gone: nothing is written after the first save
        saved.append(about["steps"])
        write(folder, tensors, about)

    monkeypatch.setattr(loop, "write_shards", once)
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    monkeypatch.setattr(loop, "SAVING_SHARE", math.inf)
    first = Run()
    with pytest.raises(Killed):
        first.train(PLAN, tmp_path / "parts")
    monkeypatch.undo()
    second = Run(seed=9)
    again = second.train(replace(PLAN, resume=True), tmp_path / "parts")
    assert saved == [1] and len(first.losses) == 2
    assert first.losses[:1] + second.losses == whole.losses
    assert the_same(again, weights)


def test_an_interrupt_in_the_middle_of_an_update_keeps_the_checkpoint_before_it(tmp_path, monkeypatch):
    whole = Run()
    whole.train(PLAN, tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    monkeypatch.setattr(loop, "SAVING_SHARE", math.inf)
    update, calls = loop.EMA.update, []

    def stopped(self, *values):
        calls.append(values)
        if len(calls) == 4:
            raise Killed
        update(self, *values)

    monkeypatch.setattr(loop.EMA, "update", stopped)
    with pytest.raises(Killed):
        Run().train(PLAN, tmp_path / "parts")
    monkeypatch.undo()
    assert read_shards(tmp_path / "parts")[1]["steps"] == 3
    second = Run(seed=9)
    second.train(replace(PLAN, resume=True), tmp_path / "parts")
    assert second.losses == whole.losses[3:]


def test_a_checkpoint_without_optimisers_goes_on_with_a_new_warm_up(tmp_path):
    first = Run()
    with pytest.raises(Killed):
        first.train(PLAN, tmp_path, stop_at=5)
    tensors, about = read_shards(tmp_path)
    old = {k: v for k, v in tensors.items() if k[:2] in ("w.", "a.")}
    write_shards(tmp_path, old, {"seconds": about["seconds"], "steps": about["steps"], "loss": None})
    Run(seed=9).train(replace(PLAN, resume=True), tmp_path)
    about = read_shards(tmp_path)[1]
    assert (about["steps"], about["warm_from"]) == (12, 5)


def test_training_minimises(tmp_path):
    torch.manual_seed(0)
    network, seen = nn.Linear(1, 1), []

    def loss(moment: Moment) -> torch.Tensor:
        seen.append(moment.progress)
        return (network(torch.ones(1, 1)) - 3).square().sum()

    averaged = train(network, loss, Plan(0.1, steps=60, warm_up=1, ema=0.5), tmp_path)
    assert seen == [step / 60 for step in range(60)]
    network.load_state_dict(averaged)
    assert loss(Moment(60, 0, 1.0)).item() < 0.1


def test_a_run_that_must_stop_early_says_so_and_is_saved(tmp_path):
    with pytest.raises(Paused, match="paused at .* %, go on with --resume"):
        Run().train(Plan(0.1, steps=10**9, stop_after=0.002), tmp_path)
    assert read_shards(tmp_path)[1]["steps"] > 0


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path):
    Run().train(replace(PLAN, steps=2), tmp_path)
    network, plan = Run().network, replace(PLAN, steps=3, resume=True)
    with pytest.raises(InputError, match="the loss is nan at step 3: train with a lower rate than 0.01"):
        train(network, lambda _: network(torch.ones(1, 4)).sum() * torch.nan, plan, tmp_path)
    tensors, about = read_shards(tmp_path)
    assert about["steps"] == 2 and all(v.isfinite().all() for k, v in tensors.items() if k.startswith("w."))


def test_shards_are_small_and_read_back_whole(tmp_path):
    tensors = {f"t{i}": torch.full((SHARD_BYTES // 10,), i / 10) for i in range(6)}  # 4 bytes each: 2.4 shards
    write_shards(tmp_path, {"old": torch.zeros(1)}, {})
    write_shards(tmp_path, tensors, {"steps": 7})
    shards = sorted(tmp_path.glob("shard-*.safetensors"))
    assert len(shards) == 3 and all(p.stat().st_size <= SHARD_BYTES + 10_000 for p in shards)
    again, about = read_shards(tmp_path)
    assert about["steps"] == 7 and again.keys() == tensors.keys()
    assert all(torch.equal(again[k], v) for k, v in tensors.items())
    shards[1].unlink()
    with pytest.raises(InputError, match="no whole checkpoint"):
        read_shards(tmp_path)
