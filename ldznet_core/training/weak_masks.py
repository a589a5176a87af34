"""Masks that nobody is sure of: soft ones become white where the thing is, black where it is not, and grey between.

Grey pixels do not count in training.
"""

import numpy as np
import torch

from ..segment.base import MaskPrediction
from ..segment.guided_filter import refine

SURE = 0.6  # soft masks from this on are the thing, and up to 1 minus it they are not; between, nobody knows
UNKNOWN = 128  # grey of a mask for pixels that do not count


def edged(prediction: MaskPrediction, picture: np.ndarray) -> np.ndarray:
    """The first picture's soft masks with its edges: float [P, H, W] in 0..1."""
    return refine(prediction.masks[0], torch.from_numpy(picture).float() / 255, prediction.reach).clamp(0, 1).numpy()


def unsure(soft: np.ndarray) -> np.ndarray:
    """A soft mask in 0..1 as a grey one: white, black, and `UNKNOWN` where it is unsure."""
    return np.select([soft >= SURE, soft <= 1 - SURE], [255, 0], UNKNOWN).astype(np.uint8)


def agreed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A grey mask, uint8 [H, W], of two soft ones in 0..1: white and black where both are on one side of a half and one
    of them is sure, else `UNKNOWN`."""
    most, least = np.maximum(first, second), np.minimum(first, second)
    white, black = (least > 0.5) & (most >= SURE), (most < 0.5) & (least <= 1 - SURE)
    return np.select([white, black], [255, 0], UNKNOWN).astype(np.uint8)
