"""Muon: orthogonal updates, kernels as matrices, and torch's own numbers."""

import pytest
import torch
from torch import nn

from ldznet_core.networks.mmdit import JointBlock
from ldznet_core.training import muon
from ldznet_core.training.loop import Plan, train
from ldznet_core.training.muon import Muon, hidden_matrices, orthogonal


def test_a_matrix_is_made_nearly_orthogonal_whatever_its_shape():
    torch.manual_seed(0)
    for shape in ((1, 2, 3), (5, 64, 80), (3, 128, 64)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.6 < singular.min() and singular.max() < 1.25
    scaled = torch.diag(torch.tensor([4.0, -2.0]))[None]
    assert torch.equal(orthogonal(scaled).sign(), scaled.sign())  # directions stay, lengths go
    assert torch.equal(orthogonal(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))


def test_embeddings_thin_layers_and_vectors_are_left_out():
    network = nn.ModuleDict({
        "words": nn.Embedding(100, 64), "inner": nn.Linear(64, 64), "kernel": nn.Conv2d(64, 64, 3),
        "first": nn.Conv2d(4, 64, 3), "last": nn.Conv2d(64, 4, 3), "norm": nn.LayerNorm(64),
    })  # fmt: skip
    matrices = hidden_matrices(network)
    assert [id(p) for p in matrices] == [id(network["inner"].weight), id(network["kernel"].weight)]
    network["inner"].requires_grad_(False)
    assert len(hidden_matrices(network)) == 1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_three_steps_equal_torch_s_muon(monkeypatch):
    monkeypatch.setattr(muon, "computes_in_bfloat16", lambda device: True)  # torch's always does
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(64, 96)), nn.Parameter(torch.randn(64, 96)), nn.Parameter(torch.randn(80, 64))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (
        Muon(ours, 0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            gradients = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=gradients)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # bfloat16 inside; a step is about 2e-3 an entry


def test_a_kernel_moves_as_its_matrix_does():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(64, 8, 3, 3))
    matrix = nn.Parameter(kernel.detach().reshape(64, 72).clone())
    kernel.grad = torch.randn(64, 8, 3, 3)
    matrix.grad = kernel.grad.reshape(64, 72).clone()
    for p in (kernel, matrix):
        Muon([p], 0.1).step()
    assert torch.equal(kernel.reshape(64, 72), matrix)


def test_a_plan_with_a_matrix_rate_trains_matrices_with_muon_and_the_rest_with_adam(tmp_path):
    torch.manual_seed(0)
    network, x = nn.Linear(64, 64), torch.randn(256, 64)
    target = x @ torch.linalg.qr(torch.randn(64, 64))[0] + 1

    def loss(progress):
        return (network(x) - target).square().mean()

    before = loss(0).item()
    train(network, loss, Plan(0.02, matrix_rate=0.1, steps=150, warm_up=1), tmp_path)
    assert loss(1).item() < 0.05 * before and network.bias.mean().item() == pytest.approx(1, abs=0.2)


def test_muon_leaves_modulations_to_adamw():
    block = JointBlock(64, qk_norm=True, last=True)
    names = {id(p): name for name, p in block.named_parameters()}
    assert {names[id(p)] for p in hidden_matrices(block)} == {
        "context_block.attn.qkv.weight", "x_block.attn.qkv.weight", "x_block.attn.proj.weight",
        "x_block.mlp.fc1.weight", "x_block.mlp.fc2.weight",
    }
