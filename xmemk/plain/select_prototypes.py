"""Prototype selection by usage (Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def select_prototypes(usage: Tensor, num_prototypes: int) -> Tensor:
    """usage [B, N] -> index [B, P], most used first, the older of equals first, NaN last"""
    return torch.sort(-usage, dim=1, stable=True).indices[:, :num_prototypes]
