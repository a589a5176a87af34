"""One temperature a decoder, so that of the pixels with 0.7 in a mask seven in ten belong to the thing (Guo et al., On
calibration of modern neural networks, ICML 2017).

It is folded into the layer that gives the logits: files and the code that reads them know nothing of it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.torch_ldm import FileBackbone
from ..data.base import Example
from ..decoders.base import Decoder
from ..decoders.light import LightDecoder
from ..evaluation.batches import batches
from ..evaluation.predictors import Decoded

EVERY = 7  # pixels, of which one is looked at: neighbours tell the same
FEWEST, MOST = 0.25, 4.0  # temperatures that are tried


def pixels(backbone: FileBackbone, decoder: Decoder, dataset: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Logits [N] of pixels of all examples, and whether each belongs to the thing, as 0 or 1."""
    logits, truth = [], []
    for batch in batches(dataset, backbone):
        masks = Decoded(decoder, decoder.conditions[0])(backbone, batch).masks  # [N, H, W]
        logits.append(masks.float().flatten()[::EVERY].logit(1e-6))
        truth.append(torch.cat([torch.from_numpy(example.mask).flatten() for example in batch.examples])[::EVERY])
    return torch.cat(logits), torch.cat(truth).float()


def temperature(logits: Tensor, truth: Tensor) -> float:
    """The temperature, to 1 %, under which the truth is likeliest."""
    tried = FEWEST * (MOST / FEWEST) ** torch.linspace(0, 1, 280)
    return float(min(tried, key=lambda t: float(F.binary_cross_entropy_with_logits(logits / t, truth))))


def expected_error(logits: Tensor, truth: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0..1: how far shares of true pixels are from the probabilities given, on average."""
    probability = logits.sigmoid()
    which = (probability * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add_(0, which, probability - truth)
    return float(gaps.abs().sum() / len(logits))


def calibrate(backbone: FileBackbone, decoder: Decoder, dataset: Sequence[Example]) -> dict[str, float]:
    """Fold the temperature that suits a data set into a decoder; what it is, and the error before and after."""
    logits, truth = pixels(backbone, decoder, dataset)
    found = temperature(logits, truth)
    fold_in(decoder, found)
    before, after = (expected_error(one, truth) for one in (logits, logits / found))
    return {"temperature": round(found, 3), "error before": round(before, 4), "error": round(after, 4)}


@torch.no_grad()
def fold_in(decoder: Decoder, temperature: float) -> None:
    """Divide the decoder's logits of masks by a temperature, in place."""
    layer = decoder.weights if isinstance(decoder, LightDecoder) else decoder.final[-1]
    layer.weight /= temperature
    layer.bias /= temperature
