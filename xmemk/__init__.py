"""xmemk: exact, fused kernels for XMem's memory, and a pure PyTorch reference that is the truth.

A name is imported when it is first used, so `import xmemk` costs nothing and loads no torch.
Submodules are names as well: ``xmemk.testing`` needs no import of its own.
"""

from typing import TYPE_CHECKING

from . import renamed  # noqa: F401
from .version import __version__

if TYPE_CHECKING:
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
    from .video.tracker import Tracker
else:  # unseen by type checkers, to which every name would exist otherwise

    def __getattr__(name):
        import importlib

        if name in _MODULES:
            value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        else:
            submodule, absent = f"{__name__}.{name}", AttributeError(f"module {__name__!r} has no attribute {name!r}")
            if name.startswith("_"):
                raise absent
            try:
                value = importlib.import_module(submodule)
            except ModuleNotFoundError as missing:
                raise absent if missing.name == submodule else missing from None
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


# Public name -> the module that defines it.
_MODULES = {
    "Memory": "memory",
    "MemoryConfig": "reference.config",
    "Tracker": "video.tracker",
    "XMem": "network",
    "affinity_topk": "api",
    "consolidate": "api",
    "evict_lfu": "api",
    "explain": "api",
    "memory_read": "api",
    "patch": "compat",
    "readout_topk": "api",
    "select_prototypes": "api",
    "similarity": "api",
}

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
