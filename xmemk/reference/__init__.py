"""The oracle: XMem's memory in plain PyTorch, able to run in float64, and its configuration.

The oracle imports nothing else of xmemk, because it must not share code with what it judges. Much
of it therefore stands twice on purpose, once here and once in the product:

    reference.Memory, reference.Sensory    xmemk.Memory, xmemk.memory.SensoryMemory
    checks.py                              xmemk/memory/checks.py
    stores.py, groups_exact.py             xmemk/memory/rules.py, arena.py, exact.py
    groups_xmem.py                         xmemk/memory/shared.py
    ops.py                                 xmemk/api.py and its backends

The configuration alone, :class:`MemoryConfig`, is used by both.
"""

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
