"""Least-frequently-used eviction (Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def evict_lfu(usage: Tensor, keep: int) -> Tensor:
    """usage [B, N] -> index [B, keep] of those that stay, ascending; the older of equals goes"""
    newest_first = torch.sort(-usage.flip(1), dim=1, stable=True).indices[:, :keep]
    return (usage.shape[1] - 1 - newest_first).sort(dim=1).values
