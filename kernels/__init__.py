"""Triton kernels for NVIDIA GPUs of compute capability 8.0 and newer, imported as ``xmemk.kernels``: backend "triton".

Importing this loads neither Triton nor a kernel; the functions do. A kernel is launched on the current device, so each
function makes that of its tensors current.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..inputs import MemoryInputs, QueryInputs
    from .ops.memory_read_backward import Gradients

if __name__ == "kernels":
    raise ImportError(
        "this folder holds xmemk's Triton kernels, to be imported as xmemk.kernels; it hides the package 'kernels' "
        "only because Python was started in xmemk's repository"
    )


def error(device: str, index: int | None = None) -> str | None:
    """Why the kernels cannot run here, in one line; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "needs Triton, which is not installed (pip install 'xmemk[gpu]')"
    if device != "cuda":
        return None
    if torch.version.hip is not None:
        return "is for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"needs compute capability 8.0 or newer, this GPU has {major}.{minor}"
    return None


def memory_read(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None"""
    with torch.cuda.device_of(queries.qk):
        if top_k is None or top_k >= memory.tokens:
            from .ops import memory_read

            return memory_read.memory_read(memory, queries, return_usage)
        from .ops import affinity_topk, readout_topk

        weight, index, usage = affinity_topk.affinity_topk(memory, queries, top_k, return_usage)
        return readout_topk.readout_topk(memory.mv, weight, index), usage


def memory_read_saving(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """:func:`.ops.memory_read_backward.memory_read_saving`"""
    from .ops import memory_read_backward

    with torch.cuda.device_of(queries.qk):
        return memory_read_backward.memory_read_saving(memory, queries, top_k, return_usage)


def memory_read_backward(
    memory: MemoryInputs,
    queries: QueryInputs,
    weight: Tensor,
    index: Tensor,
    d_readout: Tensor | None,
    d_usage: Tensor | None,
    requested: tuple[bool, bool, bool, bool, bool] = (True,) * 5,
) -> Gradients:
    """:func:`.ops.memory_read_backward.memory_read_backward`; ``requested`` are mk, ms, mv, qk and qe."""
    from .ops import memory_read_backward
    from .structs import Requested

    with torch.cuda.device_of(queries.qk):
        return memory_read_backward.memory_read_backward(
            memory, queries, weight, index, d_readout, d_usage, Requested(*requested)
        )


def affinity_topk(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N), usage [B, N] or None"""
    from .ops import affinity_topk

    with torch.cuda.device_of(queries.qk):
        return affinity_topk.affinity_topk(memory, queries, top_k, return_usage)


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> readout [B, O, CV, Q]. An index that no token has reads 0."""
    from .ops import readout_topk

    with torch.cuda.device_of(weight):
        return readout_topk.readout_topk(mv, weight, index)


def potentiate(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    """Eq. 3 -> ps [B, 1, P] float32, pv [B, O, CV, P]"""
    from .ops import potentiate

    with torch.cuda.device_of(prototypes.qk):
        return potentiate.potentiate(memory, prototypes)
