"""Hand-made descriptors in place of a trained key encoder: appearance and position of image cells.

Label propagation needs a descriptor under which the same part of an object is alike in two frames
(Wang et al., "Learning correspondence from the cycle-consistency of time", 2019; Caron et al.,
DINO, 2021). Neighbouring frames are so alike that colour, gradients and position suffice.

Shapes: H x W the image; h x w the grid of cells, each of which is one token of the memory; CK = 12.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8  # a token is CELL x CELL pixels of the image resized to [h * CELL, w * CELL]
TOKENS = 3600  # of a frame, at most: 45 x 80 at 16:9; the cost of a read grows with the square

# The factor of squared descriptor distances before the softmax. A tenth of the range of lightness
# is a squared distance of 0.01, and then a factor of e^-6.
SHARPNESS = 600.0
CHROMA = 1.5  # colour counts more than lightness, which changes when the object turns
GRADIENT = 4.0
POSITION = 0.7  # descriptor distance from the left to the right edge of the image
DISTINCTIVE = 0.3  # gradients of this norm halve the weight of the position


class Description(NamedTuple):
    """The query of one frame, and its memory key should it become a memory frame."""

    key: Tensor  # [1, CK, h, w]
    selection: Tensor  # [1, CK, h, w], in [0, 1]


def grid_size(height: int, width: int) -> tuple[int, int]:
    """The grid (h, w) of an image: about TOKENS square cells at most, at least CELL pixels wide."""
    tokens = min(TOKENS, height * width / CELL**2)
    h = max(2, round(math.sqrt(tokens * height / width)))
    return h, max(2, round(tokens / h))


def describe(image: Tensor, grid: tuple[int, int]) -> Description:
    """Descriptors of an image, uint8 [H, W, 3] in sRGB, on a grid (h, w).

    Channels: colour of the cell (3), colour of its surroundings (3), strength of the gradient to
    the right, left, bottom, top (4), position (2). The selection weights the position fully in a
    cell without edges, such as the middle of a smooth body, and less in a cell with distinctive
    edges, which can be recognised elsewhere.
    """
    h, w = grid
    rgb = image.permute(2, 0, 1)[None].float() / 255
    lab = _lab(F.interpolate(rgb, (h * CELL, w * CELL), mode="area"))
    half = CELL // 2
    surroundings = F.avg_pool2d(_blur(F.avg_pool2d(lab, half), 3.0), 2)
    gradient = GRADIENT * F.avg_pool2d(_blur(F.avg_pool2d(_slopes(lab[:, :1]), half), 1.0), 2)
    key = torch.cat([F.avg_pool2d(lab, CELL), surroundings, gradient, _positions(h, w, image.device)], 1)
    # Eq. 2 is divided by sqrt(CK); the sharpness is meant to be that of the similarity itself.
    scale = math.sqrt(SHARPNESS * math.sqrt(key.shape[1]))
    selection = torch.ones_like(key)
    selection[:, -2:] = 1 / (1 + gradient.square().sum(1, keepdim=True) / DISTINCTIVE**2)
    return Description(scale * key, selection)


def shrinkage_of(value: Tensor) -> Tensor:
    """The shrinkage [1, 1, h, w] of tokens from their mask patches [1, O, CV, h, w].

    It is 1 on an edge and 1.5 away from edges. A high shrinkage makes the influence of a token more
    local. The many tokens that are all object or all background would otherwise outweigh the few
    that have the course of the edge.
    """
    covered = value.sum(1).mean(1, keepdim=True)
    return 1.5 - 2 * covered * (1 - covered)


def _lab(rgb: Tensor) -> Tensor:
    """sRGB in [0, 1] -> CIE L*a*b* (D65) / 100 with a and b times CHROMA; [1, 3, H, W]."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    to_xyz = to_xyz / to_xyz.sum(1, keepdim=True)  # white is (1, 1, 1)
    xyz = F.conv2d(linear, to_xyz[:, :, None, None])
    f = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.split(1, 1)
    return torch.cat([1.16 * y - 0.16, CHROMA * 5 * (x - y), CHROMA * 2 * (y - z)], 1)


def _slopes(lightness: Tensor) -> Tensor:
    """Rising and falling slopes in x and y of [1, 1, H, W] as channels: [1, 4, H, W] >= 0."""
    smooth = F.pad(_blur(lightness, 1.5), (1, 1, 1, 1), mode="replicate")
    dx = smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]
    dy = smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]
    return torch.cat([dx, -dx, dy, -dy], 1).clamp_min(0)


def _positions(h: int, w: int, device: torch.device) -> Tensor:
    """x and y of each cell in units of the grid's width, times POSITION: [1, 2, h, w]."""
    y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    return POSITION / w * torch.stack([x, y])[None].float()


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [1, C, H, W]; sigma in pixels."""
    radius = int(2.5 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weight = torch.softmax(-offset.square() / (2 * sigma**2), 0)
    c = x.shape[1]
    x = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = F.conv2d(x, weight.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
    return F.conv2d(x, weight.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)
