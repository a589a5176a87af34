"""Probes: small decoders, all alike, that tell how much of a mask can be decoded from a feature map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .metrics import PhraseMetrics, Scores

WIDTH = 32
RATE, WEIGHT_DECAY = 4e-3, 0.01
EXAMPLES, POINTS = 32, 64  # in a batch: examples, and points of each
PICTURES = 64  # scored at once
KNOWN = 512  # training examples that the inputs are standardised by


@dataclass(frozen=True, eq=False)
class Inputs:
    """What probes are trained or scored on, N examples: a feature map a block, each [N, C, h, w] in float16, and phrase
    vectors [N, D]. `masks` and `counts` are bool [N, H, W]; pixels that do not count are false in `counts`."""

    maps: Sequence[Tensor]
    phrases: Tensor
    masks: Tensor
    counts: Tensor


class Probe(nn.Module):
    """Maps [B, C, h, w] and phrase vectors [B, D] to logits [B, P] at `points` [B, P, 2], (x, y) in -1..1.

    A 1x1 convolution to `WIDTH` channels, scaled and shifted by the phrase (FiLM), read between positions by bilinear
    interpolation, and two linear layers: nothing but what the nearest positions hold decides about a point. Only the
    number of channels that it reads differs from block to block. Inputs are standardised by their mean and deviation
    over the training examples, because the scale of activations differs between blocks.
    """

    def __init__(self, maps: Tensor, phrases: Tensor):
        super().__init__()
        self.reduce = nn.Conv2d(maps.shape[1], WIDTH, 1)
        self.film = nn.Linear(phrases.shape[1], 2 * WIDTH)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
        for name, values, dims in (("map", maps, (0, 2, 3)), ("phrase", phrases, (0,))):
            values = values[:KNOWN].float()
            self.register_buffer(f"{name}_mean", values.mean(dims, keepdim=True))
            self.register_buffer(f"{name}_deviation", values.std(dims, keepdim=True).clamp(min=1e-4))

    def forward(self, maps: Tensor, phrases: Tensor, points: Tensor) -> Tensor:
        weight = self.reduce.weight / self.map_deviation  # standardises the maps, at the cost of one on the weights
        bias = self.reduce.bias - (weight * self.map_mean).sum((1, 2, 3))
        x = F.conv2d(maps, weight, bias)  # [B, WIDTH, h, w]
        film = self.film((phrases - self.phrase_mean) / self.phrase_deviation)
        scale, shift = film[..., None, None].chunk(2, dim=1)  # [B, WIDTH, 1, 1] each
        x = x * (1 + scale) + shift
        x = F.grid_sample(x, points[:, None], "bilinear", "border", align_corners=False)  # [B, WIDTH, 1, P]
        return self.head(x[:, :, 0].mT)[..., 0]


def points_of(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """The centres of cells of a grid, numbered row by row: [B, P] to [B, P, 2], (x, y) in -1..1."""
    height, width = size
    return torch.stack([(cells % width + 0.5) * 2 / width - 1, (cells // width + 0.5) * 2 / height - 1], dim=-1)


def fit(inputs: Inputs, size: tuple[int, int], steps: int, seed: int, device: torch.device) -> list[Probe]:
    """A probe for every map of `inputs`, trained with the paper's loss, binary cross-entropy, on the same batches: at
    random cells of a grid of `size`, over each of which the mask is averaged. Torch's random state stays as it was."""
    counts = inputs.counts.float()[:, None]
    weights = F.adaptive_avg_pool2d(counts, size).flatten(1)  # [N, h * w]
    targets = F.adaptive_avg_pool2d(inputs.masks.float()[:, None] * counts, size).flatten(1) / weights.clamp(min=1e-6)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        probes = nn.ModuleList(Probe(maps, inputs.phrases) for maps in inputs.maps).to(device)
        optimizer = torch.optim.AdamW(probes.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(len(targets), (EXAMPLES,))
            cells = torch.randint(targets.shape[1], (EXAMPLES, POINTS))
            target, weight = (values[rows].gather(1, cells).to(device) for values in (targets, weights))
            phrases, points = inputs.phrases[rows].to(device), points_of(cells, size).to(device)
            # No parameter is shared, so the sum trains each probe as its own loss would.
            loss = sum(
                F.binary_cross_entropy_with_logits(
                    probe(maps[rows].to(device).float(), phrases, points), target, weight, reduction="sum"
                )
                for probe, maps in zip(probes, inputs.maps, strict=True)
            )
            optimizer.zero_grad(set_to_none=True)
            (loss / weight.sum().clamp(min=1)).backward()
            optimizer.step()
    return list(probes)


@torch.inference_mode()
def score(probes: Sequence[Probe], inputs: Inputs, size: tuple[int, int], device: torch.device) -> list[Scores]:
    """The scores of every probe's masks: logits on a grid of `size`, enlarged to the masks' own size."""
    metrics = [PhraseMetrics() for _ in probes]
    for start in range(0, len(inputs.masks), PICTURES):
        rows = slice(start, start + PICTURES)
        masks, counts, phrases = inputs.masks[rows], inputs.counts[rows], inputs.phrases[rows].to(device)
        points = points_of(torch.arange(math.prod(size)).expand(len(masks), -1), size).to(device)
        for probe, maps, metric in zip(probes, inputs.maps, metrics, strict=True):
            logits = probe(maps[rows].to(device).float(), phrases, points).unflatten(1, size)[:, None]
            soft = F.interpolate(logits, masks.shape[1:], mode="bilinear").sigmoid()[:, 0].cpu()
            metric.update(soft * counts, masks & counts)
    return [metric.compute() for metric in metrics]
