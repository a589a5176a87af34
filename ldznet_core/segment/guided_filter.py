"""An edge step without weights: masks that follow the image they belong to.

The guided filter of He, Sun and Tang (2013) in its fast form (2015): where a mask is unsure it becomes, in every
neighbourhood, the linear function of the image's colours that fits it best. Tensors in, tensors out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError

REACH = 1 / 24  # of the long side: half the width of the band in which an edge is looked for
SMOOTHNESS = 1e-4  # variance of colour, in 0..1, below which a neighbourhood counts as flat
GRID = 6  # neighbourhoods are this many coarse pixels wide to each side: what is finer is left to the image


def refine(masks: Tensor, image: Tensor, reach: float = REACH) -> Tensor:
    """Soft masks [P, H, W] in 0..1 whose edges follow `image` [H, W, 3] in 0..1; both stay at full size.

    Masks of another size are brought to the image's. `reach` is the share of its long side within which an edge may
    move. What is sure and has only sure neighbours passes through unchanged. Raises InputError for other shapes.
    """
    if masks.ndim != 3 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"expected masks [P, H, W] and one image [H, W, 3], got {[*masks.shape]} and {[*image.shape]}")
    height, width = image.shape[:2]
    if masks.shape[1:] != (height, width):
        masks = F.interpolate(masks[:, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0]
    radius = max(2, round(reach * max(height, width)))
    step = max(1, radius // GRID)
    guide = image.permute(2, 0, 1)[None].float()  # [1, 3, H, W]
    soft = masks[:, None].float()  # [P, 1, H, W]

    def coarse(x: Tensor) -> Tensor:
        size = (max(1, height // step), max(1, width // step))
        return x if step == 1 else F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)

    def fine(x: Tensor) -> Tensor:
        return x if step == 1 else F.interpolate(x, (height, width), mode="bilinear", align_corners=False)

    small_guide, small = coarse(guide), coarse(soft)
    near = max(1, round(radius / step))
    slope, offset = linear_fit(small_guide, small, near)  # [P, 3, h, w], [P, 1, h, w]
    # In the fit an edge is as wide as the neighbourhood: steeper, it is where the fit is even again.
    low, high = -pool_max(-small, near), pool_max(small, near)
    unsure = fine(((high - low - 0.2) / 0.3).clamp(0, 1))  # 0 where all neighbours agree
    result = torch.empty_like(soft)
    for i in range(len(soft)):  # one phrase at a time: at 4K each of these is 200 MB
        fit = (fine(slope[i : i + 1]) * guide).sum(1, keepdim=True) + fine(offset[i : i + 1])
        result[i] = (soft[i] + unsure[i] * (fit[0].clamp(0, 1) - soft[i])).clamp(0, 1)
    return result[:, 0].to(masks.dtype)


def fitted(masks: Tensor, guide: Tensor, radius: int, smoothness: float) -> Tensor:
    """What in every neighbourhood is the linear function of `guide` [C, h, w] that fits masks [P, h, w] best: masks of
    the same size. `smoothness` is the variance of the guide below which a neighbourhood counts as flat."""
    slope, offset = linear_fit(guide[None], masks[:, None], radius, smoothness)
    return (slope * guide).sum(1) + offset[:, 0]


def linear_fit(
    guide: Tensor, masks: Tensor, radius: int, smoothness: float = SMOOTHNESS
) -> tuple[Tensor, Tensor]:
    """Per position, averaged over all neighbourhoods that hold it, the slope [P, C, h, w] and offset [P, 1, h, w] of
    the function of colour that fits masks [P, 1, h, w] best. `guide` [1, C, h, w]."""
    channels = guide.shape[1]
    mean, mask_mean = box(guide, radius), box(masks, radius)
    products = (guide[:, :, None] * guide[:, None]).flatten(1, 2)  # [1, C * C, h, w]
    variance = box(products, radius).unflatten(1, (channels, channels)) - mean[:, :, None] * mean[:, None]
    covariance = box(guide * masks, radius) - mean * mask_mean  # [P, C, h, w]
    flat = smoothness * torch.eye(channels, device=guide.device)
    matrix = variance.permute(0, 3, 4, 1, 2) + flat  # [1, h, w, C, C]
    slope = torch.linalg.solve_ex(matrix, covariance.permute(0, 2, 3, 1)[..., None])[0][..., 0].permute(0, 3, 1, 2)
    offset = mask_mean - (slope * mean).sum(1, keepdim=True)
    return box(slope, radius), box(offset, radius)


def box(x: Tensor, radius: int) -> Tensor:
    """Mean over a square of 2 radius + 1, of what of it lies inside the picture: of each column, then of the means."""
    for side, edge in lines(radius):
        x = F.avg_pool2d(x, side, stride=1, padding=edge, count_include_pad=False)
    return x


def pool_max(x: Tensor, radius: int) -> Tensor:
    """The largest value of such a square."""
    for side, edge in lines(radius):
        x = F.max_pool2d(x, side, stride=1, padding=edge)
    return x


def lines(radius: int) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    """Kernel and padding of a column and of a row of 2 radius + 1: one after the other they pool a square."""
    return ((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))
