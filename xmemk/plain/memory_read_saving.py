"""memory_read with derivatives: it saves its inputs alone.

The backward pass computes the affinity again, a block of queries at a time.
"""

from __future__ import annotations

from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from ..modes import Inputs
from .derivatives import differentiable
from .memory_read import memory_read
from .memory_read_backward import memory_read_backward
from .read_tensors import ReadTensors


def memory_read_saving(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """memory_read with derivatives of any order in all five inputs."""
    layout, tensors = ReadTensors.of(memory, queries)

    def read(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        readout, usage = memory_read(*layout.structs(tensors), top_k, return_usage)
        return (readout,) if usage is None else (readout, usage)

    def formulas(upstream: Inputs, tensors: Inputs) -> Inputs:
        memory, queries = layout.structs(tensors)
        d_readout, d_usage = (*upstream, None)[:2]
        if d_readout is None:
            value = memory.mv[0]
            d_readout = value.new_zeros(*value.shape[:3], queries.qk.shape[2])
        d_memory, d_queries = memory_read_backward(memory, queries, top_k, d_readout, d_usage)
        return *d_memory.tensors, *d_queries

    readout, *usage = differentiable(read, tensors, formulas)
    return readout, usage[0] if usage else None
