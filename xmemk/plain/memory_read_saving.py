"""memory_read with gradients in eager mode: it saves its inputs alone.

The backward pass computes the affinity again, a block of queries at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .memory_read import memory_read
from .memory_read_backward import memory_read_backward


def memory_read_saving(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """memory_read with gradients for all five inputs. A compiler differentiates the read itself."""
    if torch.compiler.is_compiling():
        return memory_read(memory, queries, top_k, return_usage)
    with_ms = memory.ms is not None
    readout, usage = _Read.apply(len(memory.mk), with_ms, top_k, return_usage, *memory.tensors, *queries)
    return readout, usage


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, segments: int, with_ms: bool, top_k: int | None, return_usage: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(*tensors)
        ctx.call = (segments, with_ms, top_k)
        ctx.set_materialize_grads(False)
        return memory_read(*_structs(segments, with_ms, tensors), top_k, return_usage)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_readout: Tensor | None, d_usage: Tensor | None) -> tuple[Tensor | None, ...]:
        segments, with_ms, top_k = ctx.call
        memory, queries = _structs(segments, with_ms, ctx.saved_tensors)
        if d_readout is None:
            if d_usage is None:
                return (None,) * (4 + len(ctx.saved_tensors))
            value = memory.mv[0]
            d_readout = value.new_zeros(*value.shape[:3], queries.qk.shape[2])
        d_memory, d_queries = memory_read_backward(memory, queries, top_k, d_readout, d_usage)
        return None, None, None, None, *d_memory.tensors, *d_queries


def _structs(segments: int, with_ms: bool, tensors: tuple[Any, ...]) -> tuple[MemoryInputs, QueryInputs]:
    lists = [list(tensors[i : i + segments]) for i in range(0, len(tensors) - 2, segments)]
    return MemoryInputs(lists[0], lists[1] if with_ms else None, lists[-1]), QueryInputs(*tensors[-2:])
