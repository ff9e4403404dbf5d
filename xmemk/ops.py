"""The torch.library operators: schemas and fakes. Their kernels are registered by the extension, loaded on first use.

One operator is one boundary for torch.compile and autograd; what needs gradients wraps it (autograd.py), what is plain
PyTorch has no operator at all, so that the compiler sees through it.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("xmemk", "DEF")
_PURE = (torch.Tag.pt2_compliant_tag,)

_LIBRARY.define("select_prototypes(Tensor usage, SymInt num_prototypes) -> Tensor", tags=_PURE)
_LIBRARY.define("evict_lfu(Tensor usage, SymInt keep) -> Tensor", tags=_PURE)
_LIBRARY.define("gather_tokens(Tensor x, Tensor index) -> Tensor", tags=_PURE)


@torch.library.register_fake("xmemk::select_prototypes", lib=_LIBRARY)
def _(usage: Tensor, num_prototypes: int) -> Tensor:
    return usage.new_empty((usage.shape[0], num_prototypes), dtype=torch.int64)


@torch.library.register_fake("xmemk::evict_lfu", lib=_LIBRARY)
def _(usage: Tensor, keep: int) -> Tensor:
    return usage.new_empty((usage.shape[0], keep), dtype=torch.int64)


@torch.library.register_fake("xmemk::gather_tokens", lib=_LIBRARY)
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], index.shape[1]))


_native_error: str | None = ""  # "" until the first look


@torch.compiler.assume_constant_result
def native_error() -> str | None:
    """Why the compiled extension cannot be used, in one line; None when it can. Loads it on the first call."""
    global _native_error
    if _native_error == "":
        try:
            importlib.import_module("xmemk._C")
            _native_error = None
        except ModuleNotFoundError as error:
            missing = error.name == "xmemk._C"
            _native_error = "the C++ extension is not built" if missing else f"the C++ extension does not load: {error}"
        except (ImportError, OSError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            _native_error = f"the C++ extension does not load: {line}"
    return _native_error


def select_prototypes(usage: Tensor, num_prototypes: int) -> Tensor:
    """usage [B, N] -> index [B, P] int64."""
    result: Tensor = torch.ops.xmemk.select_prototypes(usage, num_prototypes)
    return result


def evict_lfu(usage: Tensor, keep: int) -> Tensor:
    """usage [B, N] -> index [B, keep] int64, ascending."""
    result: Tensor = torch.ops.xmemk.evict_lfu(usage, keep)
    return result


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x [B, ..., N], index [B, P] int64 -> [B, ..., P]."""
    result: Tensor = torch.ops.xmemk.gather_tokens(x, index)
    return result
