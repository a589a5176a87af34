"""What a run tells: every loss is kept once, times are short, too little memory names what to lower."""

import json

import pytest
import torch

from ldznet_core.training.loop import Moment
from ldznet_core.training.progress import Progress, out_of_memory, span
from ldznet_core.training.validation import Best


def test_times_have_two_units_at_most():
    assert [span(seconds) for seconds in (8, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 05 min"]


def test_a_resumed_run_writes_the_steps_since_its_checkpoint_anew(tmp_path):
    for first, values in ((0, (0.5, 0.4, 0.3)), (1, (0.4, 0.35))):
        progress = Progress(tmp_path, first)
        for step, value in enumerate(values, start=first + 1):
            progress.step(Moment(step, 0, step / 3), torch.tensor(value))
        progress.close()
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["loss"] for line in lines] == pytest.approx([0.5, 0.4, 0.35])


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    Progress(tmp_path, 2).close()
    assert (tmp_path / "losses.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_patience_counts_validations_without_gain(tmp_path):
    best = Best(tmp_path, patience=2, first=0)
    assert [best.add(score) for score in (0.1, 0.3, 0.3)] == [True, True, False]
    assert not best.stale
    best.add(0.2)
    assert best.stale
    assert not Best(tmp_path, patience=0, first=0).stale


def test_patience_goes_on_counting_after_a_stop(tmp_path):
    scores = ((10, 0.3), (20, 0.2), (30, 0.9))
    lines = "".join(json.dumps({"step": step, "miou": miou}) + "\n" for step, miou in scores)
    (tmp_path / "validation.jsonl").write_text(lines)
    best = Best(tmp_path, patience=1, first=25)  # the checkpoint is older than the last validation
    assert best.stale and best.score == 0.3


def test_too_little_memory_names_what_is_left_to_lower():
    assert "--at-once 2 (now 4" in out_of_memory(32, 4, 1, 384, False)
    assert out_of_memory(32, 1, 1, 384, False).endswith("try a smaller --size (now 384)")
    assert out_of_memory(32, 1, 1, 64, False).endswith("try a device with more memory")
    assert out_of_memory(32, 4, 4, 64, True).endswith("--phrases 1 (now 4), --at-once 1, or --checkpointing (now off)")
