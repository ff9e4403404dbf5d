"""Random features of a network's statistics, and random weights that behave as trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def features(h: int, w: int, objects: int, channels: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A scene that changes slowly: key, shrinkage, selection [1, C, h, w], value [1, O, CV, h, w]."""
    g = torch.Generator().manual_seed(0)
    scene = torch.randn(1, 64, h, w, generator=g)
    while True:
        key = scene + 0.3 * torch.randn(1, 64, h, w, generator=g)
        shrinkage = 1 + 9 * torch.rand(1, 1, h, w, generator=g) ** 2
        yield key, shrinkage, torch.rand(1, 64, h, w, generator=g), torch.randn(1, objects, channels, h, w, generator=g)


def calibrate(network: Any, image: Tensor) -> None:
    """Keys and shrinkage of a trained network's size: beyond it, the host's softmax yields NaN."""
    with torch.no_grad():
        for _ in range(2):
            key, shrinkage, *_ = network.encode_key((image - 0.5)[None] / 0.25)
            network.key_proj.key_proj.weight /= key.std()
            network.key_proj.key_proj.bias /= key.std()
            network.key_proj.d_proj.weight /= (shrinkage - 1).sqrt().std()
