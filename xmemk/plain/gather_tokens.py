"""The tokens that an index names."""

from __future__ import annotations

from torch import Tensor


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x [B, C, N], index [B, P] -> [B, C, P]"""
    return x.gather(2, index.unsqueeze(1).expand(-1, x.shape[1], -1))
