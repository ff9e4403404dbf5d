"""The oracle: XMem's memory in plain PyTorch, torch only, float64-capable. It imports nothing else of xmemk."""

from .config import MemoryConfig
from .memory import Memory
from .ops import (
    affinity_topk,
    consolidate,
    evict_lfu,
    memory_read,
    readout_topk,
    select_prototypes,
    similarity,
)
from .sensory import Sensory

__all__ = [
    "Memory",
    "MemoryConfig",
    "Sensory",
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "memory_read",
    "readout_topk",
    "select_prototypes",
    "similarity",
]
