"""The oracle: XMem's memory in plain PyTorch, torch only, float64-capable. It imports nothing else of xmemk."""

from .ops import (
    affinity_topk,
    consolidate,
    evict_lfu,
    memory_read,
    readout_topk,
    select_prototypes,
    similarity,
)

__all__ = [
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "memory_read",
    "readout_topk",
    "select_prototypes",
    "similarity",
]
