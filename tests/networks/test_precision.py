"""Half precision is used where the processor computes in it, and nowhere else."""

import pytest
import torch

from ldznet_core.networks.precision import computes_in_bfloat16, half_precision, stacked

PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize("answers", [(False, False), (True, False), (False, True)])
def test_a_cpu_uses_bfloat16_only_where_it_need_not_emulate_it(monkeypatch, answers):
    for name, answer in zip(PROBES, answers, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    x = torch.ones(2, 2)
    with half_precision("cpu"):
        product = x @ x
    assert product.dtype == (torch.bfloat16 if any(answers) else torch.float32)
    assert computes_in_bfloat16("cuda")


def test_a_torch_that_cannot_tell_stays_in_float32(monkeypatch):
    for name in PROBES:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not computes_in_bfloat16("cpu")


def test_float16_tensors_are_stacked_under_autocast():
    """`torch.stack` alone raises there."""
    halves = [torch.full((2,), value).half() for value in (0.5, 1.5)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stacked(halves), torch.tensor([[0.5, 0.5], [1.5, 1.5]]))
