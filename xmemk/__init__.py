"""xmemk: exact, fused kernels for XMem's memory, and a pure PyTorch reference that is the truth."""

from .api import (
    affinity_topk,
    consolidate,
    evict_lfu,
    explain,
    memory_read,
    readout_topk,
    select_prototypes,
    similarity,
)
from .compat import patch
from .inference import Tracker
from .memory import Memory
from .reference.config import MemoryConfig
from .reference.network import XMem
from .version import __version__

__all__ = [
    "Memory",
    "MemoryConfig",
    "Tracker",
    "XMem",
    "__version__",
    "affinity_topk",
    "consolidate",
    "evict_lfu",
    "explain",
    "memory_read",
    "patch",
    "readout_topk",
    "select_prototypes",
    "similarity",
]
