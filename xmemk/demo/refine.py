"""Soft masks to the edges of the picture, without training: the guided filter.

He, Sun, Tang, "Guided image filtering" (2010), with the picture's three colours as guide: within every small window the
mask becomes the linear function of the colour that fits it best, so that its edge moves to the edge of the picture.
Fitted at half resolution ("Fast guided filter", 2015), applied at full.
Shapes: O objects, H and W of the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 6  # of the windows, in pixels of half resolution; moves edges that are off by half of that
NOISE = 3e-4  # variance of colour (in [0, 1]) that is no edge


def guided_filter(image: Tensor, mask: Tensor, radius: int = RADIUS, noise: float = NOISE) -> Tensor:
    """Soft masks [O, H, W] in [0, 1] that follow the edges of ``image``, uint8 [H, W, 3]. Returns [O, H, W]."""
    guide = image.permute(2, 0, 1).float() / 255
    small, target = _halved(guide), _halved(mask)
    mean = _box(small, radius)
    # The 3 x 3 covariance of the colours is symmetric; rows and columns of its upper triangle:
    i, j = torch.triu_indices(3, 3, device=image.device)
    covariance = _box(small[i] * small[j], radius) - mean[i] * mean[j]
    inverse = _inverse(covariance + noise * (i == j)[:, None, None])
    slopes, offsets = [], []
    for one in target:
        mean_of_one = _box(one[None], radius)
        with_colour = _box(small * one, radius) - mean * mean_of_one
        slope = (inverse * with_colour).sum(1)
        slopes.append(slope)
        offsets.append(mean_of_one - (slope * mean).sum(0, keepdim=True))
    fit = _box(torch.cat([torch.cat(slopes), torch.cat(offsets)]), radius)
    fit = F.interpolate(fit[None], guide.shape[1:], mode="bilinear")[0]
    count = len(mask)
    slope, offset = fit[: 3 * count].unflatten(0, (count, 3)), fit[3 * count :]
    return ((slope * guide).sum(1) + offset).clamp(0, 1)


def labels_of(mask: Tensor) -> Tensor:
    """Soft masks [O, H, W] -> rows, uint8 [H, W]: 0 where background, 1 - sum, is largest, else 1 + the object's."""
    background = 1 - mask.sum(0, keepdim=True)
    return torch.cat([background, mask]).argmax(0).to(torch.uint8)


def _inverse(upper: Tensor) -> Tensor:
    """Inverse [3, 3, H, W] of symmetric matrices given as (00, 01, 02, 11, 12, 22) [6, H, W], by cofactors."""
    a, b, c, d, e, f = upper
    cofactor = torch.stack([d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b])
    determinant = a * cofactor[0] + b * cofactor[1] + c * cofactor[2]
    return (cofactor / determinant)[[0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(0, (3, 3))


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x[None], 2, ceil_mode=True)[0]


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over the part of a (2 radius + 1)-wide square window that lies inside [C, H, W]."""
    size = 2 * radius + 1
    x = F.avg_pool2d(x[None], (size, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), 1, (0, radius), count_include_pad=False)[0]
