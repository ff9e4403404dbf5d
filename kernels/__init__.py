"""Triton kernels for NVIDIA GPUs of compute capability 8.0 and newer, imported as ``xmemk.kernels``: backend "triton".

Importing this loads neither Triton nor a kernel; the functions do. DESIGN.md has what the files are and why.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xmemk.inputs import MemoryInputs, QueryInputs

if __name__ == "kernels":
    raise ImportError(
        "this folder holds xmemk's Triton kernels, to be imported as xmemk.kernels; it hides the package 'kernels' "
        "only because Python was started in xmemk's repository"
    )

LARGEST_K = 256
MOST_KEY_CHANNELS = 128


def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter, which takes CPU tensors (TRITON_INTERPRET=1; for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def error(device: str, index: int | None = None) -> str | None:
    """Why the kernels cannot run here, in one line; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "needs Triton, which is not installed (pip install 'xmemk[gpu]')"
    if device != "cuda" or interpreted():
        return None
    if torch.version.hip is not None:
        return "is for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"needs compute capability 8.0 or newer, this GPU has {major}.{minor}"
    return None


def _on_its_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Kernels are launched on the current device, which need not be that of the tensors."""

    @functools.wraps(function)
    def there(*args: Any) -> Any:
        like = args[0].mk[0] if isinstance(args[0], MemoryInputs) else args[0][0]
        with torch.cuda.device_of(like):
            return function(*args)

    return there


@_on_its_device
def memory_read(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None"""
    if top_k is None or top_k >= memory.tokens:
        from . import dense_read

        return dense_read.memory_read(*memory, *queries, return_usage)
    from . import topk_affinity, topk_readout

    weight, index, usage = topk_affinity.affinity_topk(*memory[:2], *queries, top_k, return_usage)
    return topk_readout.readout_topk(memory.mv, weight, index), usage


@_on_its_device
def memory_read_saving(memory: MemoryInputs, queries: QueryInputs, *more: Any) -> Any:
    """:func:`.gradients.memory_read_saving`"""
    from . import gradients

    return gradients.memory_read_saving(*memory, *queries, *more)


@_on_its_device
def memory_read_backward(memory: MemoryInputs, queries: QueryInputs, *more: Any) -> Any:
    """:func:`.gradients.memory_read_backward`; the last argument as five bools, or left out for all gradients."""
    from . import gradients, wanted

    given = 4
    return gradients.memory_read_backward(*memory, *queries, *more[:given], *(wanted.Wanted(*w) for w in more[given:]))


@_on_its_device
def affinity_topk(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N), usage [B, N] or None"""
    from .topk_affinity import affinity_topk as select

    return select(*memory[:2], *queries, top_k, return_usage)


@_on_its_device
def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> readout [B, O, CV, Q]. An index that no token has reads 0."""
    from .topk_readout import readout_topk as read

    return read(mv, weight, index)


@_on_its_device
def potentiate(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    """Eq. 3 for prototypes pk [B, CK, P] with selection pe or None -> ps [B, 1, P] float32, pv [B, O, CV, P]"""
    from . import bank, dense_read

    pv, _, ps = dense_read.read(
        bank.memory(*memory[:2], dense_read.ALIGN), memory.mv, bank.Queries(*prototypes), False, True
    )
    assert ps is not None
    return ps, pv
