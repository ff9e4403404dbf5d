"""Aligning soft masks with the edges of the image, without training: the guided filter.

He, Sun, Tang, "Guided image filtering" (2010), with the three colours of the image as guide. In
each small window the mask is replaced by the linear function of colour that fits it best, which
moves its edge to the edge in the image. The fit is done at half resolution ("Fast guided filter",
2015) and applied at full resolution.

Shapes: O objects, H x W the image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.masks import labels_of

RADIUS = 6  # of a window, in pixels at half resolution; corrects edges that are off by half of it
NOISE = 3e-4  # variance of colour, in [0, 1], that does not count as an edge


def guided_filter(image: Tensor, mask: Tensor, radius: int = RADIUS, noise: float = NOISE) -> Tensor:
    """Soft masks [O, H, W] in [0, 1], edges moved to those of ``image``, uint8 [H, W, 3]."""
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


def rows_of(mask: Tensor) -> Tensor:
    """The row of the largest mask at each pixel: [O, H, W] -> uint8 [H, W].

    0 stands for the background, whose mask is 1 - sum, and 1 + i for object i.
    """
    background = 1 - mask.sum(0, keepdim=True)
    return labels_of(torch.cat([background, mask]), range(1 + len(mask)))


def _inverse(upper: Tensor) -> Tensor:
    """The inverse [3, 3, H, W] of symmetric matrices, by cofactors.

    upper: [6, H, W], the elements 00, 01, 02, 11, 12, 22.
    """
    a, b, c, d, e, f = upper
    cofactor = torch.stack([d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b])
    determinant = a * cofactor[0] + b * cofactor[1] + c * cofactor[2]
    return (cofactor / determinant)[[0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(0, (3, 3))


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x[None], 2, ceil_mode=True)[0]


def _box(x: Tensor, radius: int) -> Tensor:
    """The mean of [C, H, W] over square windows 2 radius + 1 wide, cut off at the border."""
    return _window_mean(_window_mean(x, radius, 1), radius, 2)


def _window_mean(x: Tensor, radius: int, dim: int) -> Tensor:
    """The mean over windows along one dimension, as a sum of shifted copies.

    It has the bits of ``avg_pool2d`` without padding, which takes a CPU five times as long.
    """
    size = x.shape[dim]
    total = torch.zeros_like(x)
    for shift in range(max(-radius, 1 - size), min(radius, size - 1) + 1):
        length = size - abs(shift)
        total.narrow(dim, max(0, -shift), length).add_(x.narrow(dim, max(0, shift), length))
    place = torch.arange(size, device=x.device)
    count = (place + radius).clamp_max(size - 1) - (place - radius).clamp_min(0) + 1
    return total / count.to(x.dtype).view(-1, *(1,) * (x.dim() - 1 - dim))
