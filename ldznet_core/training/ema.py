"""The exponential moving average (EMA) of a network's weights."""

import torch
from torch import Tensor, nn


class EMA:
    """Averaged parameters by name, float32 [as the network's].

    `torch.optim.swa_utils.AveragedModel` copies the whole module and its EMA has one fixed decay; this holds the
    parameters alone, and its decay rises from 0.1 so that a short run is not an average of its random start.
    """

    def __init__(self, network: nn.Module):
        self.values: dict[str, Tensor] = {k: v.detach().clone() for k, v in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float, step: int) -> None:
        """Take in the weights after step `step`, counted from 0."""
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in network.parameters()], 1 - decay)
