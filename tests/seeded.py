"""The rule by which the reference data's weights and inputs follow from a seed (see tests/data/README.md)."""

import hashlib
from math import sqrt

import torch
from torch import Tensor, nn


def seeded(name: str, shape, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


@torch.no_grad()
def seed_weights(model: nn.Module, seed: int) -> nn.Module:
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)}
    for name, p in model.named_parameters():
        r = seeded(name, p.shape, seed)
        owner, leaf = name.rpartition(".")[::2]
        if owner in norms:
            value = 0.2 * r + (leaf == "weight")
        elif name.endswith("positional_embedding"):
            value = 0.5 * r
        elif p.ndim < 2:
            value = 0.2 * r
        elif name.startswith("final."):
            value = 0.15 * r
            if p.shape[-1] == 2:
                value = value + 1
            else:
                value[..., 1, 1] += 1
        else:
            value = r / sqrt(p[0].numel()) * (3 if name == "out.2.weight" else 1)
        p.copy_(value)
    return model.eval()
