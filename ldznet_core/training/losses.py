"""Losses of masks."""

import torch.nn.functional as F
from torch import Tensor


def mask_loss(logits: Tensor, target: Tensor, ignore: Tensor | None = None, dice: float = 0.5) -> Tensor:
    """Binary cross-entropy (the paper's) plus a share of a soft Dice, which keeps small things from being ignored.

    logits and target: float [B, 1, H, W], target 0 or 1. ignore: bool [B, 1, H, W], true where a pixel does not count.
    The mean over the samples, so that a batch in parts has the loss of the whole.
    """
    cross_entropy, p = F.binary_cross_entropy_with_logits(logits, target, reduction="none"), logits.sigmoid()
    if ignore is None:
        cross_entropy = cross_entropy.mean()
    else:
        counts = (~ignore).to(logits)
        cross_entropy = ((cross_entropy * counts).sum((1, 2, 3)) / counts.sum((1, 2, 3)).clamp(min=1)).mean()
        p, target = p * counts, target * counts
    if not dice:
        return cross_entropy
    overlap = 2 * (p * target).sum((1, 2, 3)) + 1
    return cross_entropy + dice * (1 - overlap / (p.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)).mean()
