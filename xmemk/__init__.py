"""xmemk: exact, fused kernels for XMem's memory, and a pure PyTorch reference that is the truth."""

from . import renamed  # noqa: F401
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
from .memory import Memory
from .network import XMem
from .reference.config import MemoryConfig
from .version import __version__
from .video.tracker import Tracker

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
