"""Muon (Jordan, 2024): momentum whose every matrix is made orthogonal before it is applied.

After two and a half minutes on two cores the denoiser's validation error was 0.39 with it and 0.42 to 0.44 with AdamW.
torch.optim has it since 2.9, one matrix at a time; here matrices of one shape are taken together, in half the time.
"""

import torch
from torch import Tensor, nn

from ..networks.mmdit import Modulation
from ..networks.precision import computes_in_bfloat16

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
SMALLEST_SIDE = 64  # below it there is little to make orthogonal: first and last layers


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """The weights Muon is for: linear and convolution kernels inside the network, no embeddings, no modulations (they
    see the timestep alone), nothing thin."""
    others = {id(p) for m in network.modules() if isinstance(m, nn.Embedding | Modulation) for p in m.parameters()}
    return [
        p for p in network.parameters()
        if p.requires_grad and p.ndim >= 2 and id(p) not in others and min(len(p), p[0].numel()) >= SMALLEST_SIDE
    ]  # fmt: skip


def orthogonal(matrices: Tensor) -> Tensor:
    """[N, rows, columns] -> about the nearest matrices of orthonormal rows or columns (singular values 0.7 to 1.2)."""
    x = matrices.bfloat16() if computes_in_bfloat16(matrices.device) else matrices
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, third, fifth = NEWTON_SCHULZ
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Kernels count as matrices of one row an output channel. `lr` is the root mean square of an update's entries
    times five, whatever the shape (Liu et al., 2025), so that one rate and AdamW's weight decay serve all."""

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for p in params:
            self.state[p]["momentum"] = torch.zeros_like(p).reshape(len(p), -1)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((len(p), p[0].numel()), []).append(p)
            for shape, alike in shapes.items():
                gradients = torch.stack([p.grad.reshape(shape) for p in alike])  # [N, rows, columns]
                momenta = torch.stack([self.state[p]["momentum"] for p in alike])
                momenta.lerp_(gradients, 1 - MOMENTUM)
                updates = orthogonal(gradients.lerp(momenta, MOMENTUM)) * (0.2 * max(shape) ** 0.5)
                for p, momentum, update in zip(alike, momenta, updates, strict=True):
                    self.state[p]["momentum"] = momentum
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.reshape(p.shape), alpha=-group["lr"])
