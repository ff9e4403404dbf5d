"""Loading of compiled code: the extension xmemk._C, and the package of Triton kernels.

Both are loaded on first use, and what keeps one from being used is said in one line.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import torch

_NOT_TRIED = ""
_native_error: str | None = _NOT_TRIED


def native_error() -> str | None:
    """Why the compiled extension cannot be used; None when it can. The first call loads it."""
    global _native_error
    if _native_error == _NOT_TRIED:
        _native_error = _load()
    return _native_error


def _load() -> str | None:
    try:
        built_for: str = importlib.import_module("xmemk._C").build_info()["torch"]
    except ModuleNotFoundError as error:
        if error.name == "xmemk._C":
            return "the C++ extension is not built"
        reason = f"does not load: {error}"
    except (ImportError, OSError) as error:
        reason = f"does not load: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    else:
        if _minor(built_for) == _minor(torch.__version__):
            return None
        reason = f"is built for torch {built_for}, and this is torch {torch.__version__}"
    # Said once, since a whole package in plain PyTorch would only seem slow.
    warnings.warn(
        f"xmemk: the C++ extension {reason}; plain PyTorch takes its place until it is built for this torch: "
        "pip install --no-build-isolation, with xmemk's sdist or checkout",
        RuntimeWarning,
        stacklevel=2,
    )
    return f"the C++ extension {reason}"


def _minor(version: str) -> list[str]:
    """Versions that differ in these have other C++ interfaces."""
    return version.split(".")[:2]


def cuda_error() -> str | None:
    """Why the extension's CUDA kernels cannot be used; None when they can."""
    error = native_error()
    if error is None and not _built_with_cuda():
        return "the C++ extension is built without CUDA"
    return error


@functools.cache
def _built_with_cuda() -> bool:
    return bool(importlib.import_module("xmemk._C").build_info()["cuda"])


def triton_error(device: str, index: int | None = None) -> str | None:
    """Why the Triton kernels cannot be used on this device; None when they can."""
    return _triton_error(device, index)


@functools.cache
def _triton_error(device: str, index: int | None) -> str | None:
    try:
        error: str | None = kernels().error(device, index)
    except ModuleNotFoundError:
        return "needs xmemk.kernels, which an installed xmemk has (pip install --no-build-isolation -e . in a checkout)"
    return error


def kernels() -> Any:
    """The package of Triton kernels."""
    return importlib.import_module("xmemk.kernels")


def sized() -> Any:
    """The Triton kernels' read of a memory whose size is on the device (kernels/sized.py)."""
    return importlib.import_module("xmemk.kernels.sized")


# What torch.compiler.assume_constant_result does. That function loads the whole compiler, and
# Triton with it.
for _constant in (native_error, cuda_error, triton_error):
    setattr(_constant, "_dynamo_marked_constant", True)  # noqa: B010
