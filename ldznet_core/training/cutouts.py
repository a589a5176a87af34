"""Things cut out of drawings on plain grounds, and scenes composed of them whose masks are known by construction.

No network takes part: what differs from the colour of the border is the thing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from ..imaging.looks import restyle

EDGE = 3  # pixels of the border that tell the ground's colour
PLAIN = 16  # mean difference of the border's colours (0..255) up to which a ground is plain
DIFFERENT = 40  # difference from the ground's colour, of 0..255, from which a pixel is of the thing
AGREE = 0.6  # IoU of the mattes on two grounds: things drawn twice differ, mattes that are wrong differ more
AREA = 0.05, 0.7  # share of the picture that a thing takes
WHOLE = 0.9  # share of the matte that its largest piece has
BORDER = 0.1  # share of the picture's border that a thing may cover
HIDDEN = 0.5  # share of a thing that others may hide
SCALES = {1: (0.5, 0.85), 2: (0.36, 0.58), 3: (0.3, 0.46)}  # longest side, as a share of the picture, by things
TRIES = 50


@dataclass(frozen=True, eq=False)
class Cutout:
    """`rgba` is uint8 [h, w, 4] with straight alpha, cropped to the thing."""

    noun: str
    rgba: np.ndarray


def components(mask: np.ndarray) -> np.ndarray:
    """The pieces of a mask [H, W], int [H, W]: one number for each, 0 outside. Neighbours share a side."""
    inside = torch.from_numpy(mask)[None, None].float()
    labels = inside * torch.arange(1, mask.size + 1).reshape(inside.shape)  # exact in float32 up to 4096 x 4096
    while True:
        grown = torch.maximum(F.max_pool2d(labels, (3, 1), 1, (1, 0)), F.max_pool2d(labels, (1, 3), 1, (0, 1))) * inside
        if torch.equal(grown, labels):
            return labels[0, 0].long().numpy()
        labels = grown


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask with its holes: all that is not joined to the border outside it."""
    outside = components(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0])[1:-1, 1:-1]


def matte(picture: np.ndarray) -> np.ndarray | None:
    """The thing in a drawing, uint8 [H, W, 3], on a plain ground: bool [H, W]. None where the ground is not plain."""
    values = picture.astype(np.float32)
    sides = values[:EDGE], values[-EDGE:], values[:, :EDGE], values[:, -EDGE:]
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    ground = np.median(border, axis=0)
    if np.median(np.abs(border - ground).max(1)) > PLAIN:
        return None
    thing = filled(np.abs(values - ground).max(-1) >= DIFFERENT)
    image = Image.fromarray((thing * 255).astype(np.uint8))
    image = image.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MedianFilter(5))  # halo and specks off
    return np.asarray(image) > 127


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))


def cut(noun: str, pictures: Sequence[np.ndarray], attention: np.ndarray | None = None) -> tuple[Cutout | None, str]:
    """The thing of the first of some pictures, uint8 [H, W, 3], that show one thing on several plain grounds, or None
    with the reason why it is of no use. `attention` [h, w] is a soft mask of the noun, all 0 where it is not there."""
    mattes = [matte(picture) for picture in pictures]
    if any(one is None for one in mattes):
        return None, "the ground is not plain"
    thing, others = mattes[0], mattes[1:]
    if not AREA[0] <= thing.mean() <= AREA[1]:
        return None, "too small" if thing.mean() < AREA[0] else "too large"
    if any(iou(thing, other) < AGREE for other in others):
        return None, "grounds disagree"
    pieces = components(thing)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    if (pieces == largest).sum() < WHOLE * thing.sum():
        return None, "in several pieces"
    thing = pieces == largest
    height, width = thing.shape
    if thing[[0, -1]].sum() + thing[:, [0, -1]].sum() > BORDER * 2 * (height + width):
        return None, "cut off at the edge"
    if attention is not None:
        if attention.max() <= 0:
            return None, "not seen by attention"
        row, column = np.unravel_index(attention.argmax(), attention.shape)
        at = row * height // attention.shape[0], column * width // attention.shape[1]
        if not thing[at]:
            return None, "attention elsewhere"
    soft = Image.fromarray((thing * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    rows, columns = np.flatnonzero(thing.any(1)), np.flatnonzero(thing.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cutout(noun, np.dstack([pictures[0], np.asarray(soft)])[box]), ""


def relooked(rng: np.random.Generator, thing: Cutout) -> Cutout:
    """The thing in another look, at times in another shape."""
    units = np.array((1, 1, 1, 255), np.float32)
    other, _ = restyle(rng, thing.rgba / units)
    return Cutout(thing.noun, (other * units).round().astype(np.uint8))


def visible(alphas: np.ndarray) -> np.ndarray:
    """Masks [N, H, W] of layers `alphas` [N, H, W] in 0..1, lowest first: where more than half of a pixel is seen."""
    masks, through = np.empty(alphas.shape, bool), np.ones(alphas.shape[1:], np.float32)
    for i in range(len(alphas) - 1, -1, -1):
        masks[i] = alphas[i] * through > 0.5
        through = through * (1 - alphas[i])
    return masks


def compose(
    rng: np.random.Generator, things: Sequence[Cutout], ground: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cut-outs, lowest first, at random places on a ground, uint8 [H, W, 3]: the picture, uint8 [H, W, 3], and what is
    seen of each, bool [N, H, W]. None where they do not fit without hiding one another."""
    height, width = ground.shape[:2]
    for _ in range(TRIES):
        image, alphas = ground.astype(np.float32), np.zeros((len(things), height, width), np.float32)
        for alpha, thing in zip(alphas, things, strict=True):
            patch = scaled(rng, thing.rgba, rng.uniform(*SCALES[len(things)]) * min(height, width))
            top = int(rng.integers(height - patch.shape[0] + 1))
            left = int(rng.integers(width - patch.shape[1] + 1))
            place = np.s_[top : top + patch.shape[0], left : left + patch.shape[1]]
            alpha[place] = patch[..., 3]
            image[place] += patch[..., 3:] * (patch[..., :3] - image[place])
        masks = visible(alphas)
        if (masks.sum((1, 2)) >= np.maximum(1, (1 - HIDDEN) * (alphas > 0.5).sum((1, 2)))).all():
            return (image + 0.5).clip(0, 255).astype(np.uint8), masks
    return None


def scaled(rng: np.random.Generator, rgba: np.ndarray, longest: float) -> np.ndarray:
    """A cut-out whose longest side has so many pixels, half of the time mirrored and at times turned a little: float32
    [h, w, 4], colours in 0..255, alpha in 0..1."""
    image = Image.fromarray(rgba)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    ratio = longest / max(image.size)
    image = image.resize([max(1, round(side * ratio)) for side in image.size], Image.Resampling.BICUBIC)
    if rng.random() < 0.3:
        image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, expand=True)
        image.thumbnail((round(longest), round(longest)))
    patch = np.asarray(image).astype(np.float32)
    patch[..., 3] /= 255
    return patch
