"""evict_lfu: the tokens that stay when the least used leave (Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import define, fake

define("evict_lfu(Tensor usage, SymInt keep) -> Tensor")
define("evict_lfu_sized(Tensor usage, SymInt keep, Tensor size) -> Tensor")  # CUDA only
_evict_lfu = torch.ops.xmemk.evict_lfu.default
_evict_lfu_sized = torch.ops.xmemk.evict_lfu_sized.default


def evict_lfu(usage: Tensor, keep: int, size: Tensor | None = None) -> Tensor:
    """usage [B, N] -> index [B, keep] int64, ascending; ``size`` as in select_prototypes."""
    if size is None:
        index: Tensor = _evict_lfu(usage, keep)
    else:
        index = _evict_lfu_sized(usage, keep, size)
    return index


@fake("evict_lfu")
@fake("evict_lfu_sized")
def _fake(usage: Tensor, keep: int, size: Tensor | None = None) -> Tensor:
    return usage.new_empty((usage.shape[0], keep), dtype=torch.int64)
