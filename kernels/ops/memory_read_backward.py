"""memory_read_saving and memory_read_backward: a read that is to be differentiated, and its gradients.

Beside readout and usage, the read returns weight and index [B, Q, k] of the tokens that a top-k read selected. Where all
tokens are read k = 0, and the backward pass computes the weights again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...inputs import MemoryInputs, QueryInputs
from ..structs import Requested
from . import memory_read_backward_dense, memory_read_backward_topk
from .affinity_topk import affinity_topk
from .memory_read import memory_read
from .readout_topk import readout_topk

Gradients = tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor] | None, Tensor | None, Tensor | None]


def memory_read_saving(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """-> readout [B, O, CV, Q], usage [B, N] or None, weight, index. ``top_k`` is None or less than N."""
    if top_k is not None:
        weight, index, usage = affinity_topk(memory, queries, top_k, return_usage)
        return readout_topk(memory.mv, weight, index), usage, weight, index
    readout, usage = memory_read(memory, queries, return_usage)
    qk = queries.qk
    none = qk.new_empty((qk.shape[0], qk.shape[2], 0))
    return readout, usage, none.float(), none.long()


def memory_read_backward(
    memory: MemoryInputs, queries: QueryInputs, weight: Tensor, index: Tensor,
    d_readout: Tensor | None, d_usage: Tensor | None, requested: Requested,
) -> Gradients:  # fmt: skip
    """Gradients of mk, ms, mv, qk and qe in their types, rows of channels in memory.

    None for what is not requested, and for a shrinkage or selection that is None.
    """
    (mk, ms, mv), (qk, qe) = memory, queries
    if qk.shape[0] == 0 or qk.shape[2] == 0:  # nothing was read
        lists = [
            [_zeros(x) for x in tensors] if tensors is not None and needed else None
            for tensors, needed in zip((mk, ms, mv), requested)
        ]
        zeros = [_zeros(x) if x is not None and needed else None for x, needed in zip((qk, qe), requested[3:])]
        return lists[0], lists[1], lists[2], zeros[0], zeros[1]
    if d_readout is None:
        d_readout = mv[0].new_zeros((*mv[0].shape[:3], qk.shape[2]))
    requested = requested.of_inputs(memory, queries)
    if index.shape[2] > 0:
        backward = memory_read_backward_topk.memory_read_backward
        grads = backward(memory, queries, weight, index, d_readout, d_usage, requested)
    else:
        grads = memory_read_backward_dense.memory_read_backward(memory, queries, d_readout, d_usage, requested)
    dk, ds, dv, dq, de = grads
    o, cv = mv[0].shape[1:3]
    return (
        None if dk is None else [g.transpose(1, 2) for g in _split(dk, mk)],
        None if ms is None or ds is None else [g.transpose(1, 2) for g in _split(ds, ms)],
        None if dv is None else [g.unflatten(2, (o, cv)).permute(0, 2, 3, 1) for g in _split(dv, mv)],
        # Elementwise results have the strides of what they were computed from.
        None if dq is None else dq.to(qk.dtype).contiguous().transpose(1, 2),
        None if de is None else de.to(qk.dtype).contiguous().transpose(1, 2),
    )


def _zeros(x: Tensor) -> Tensor:
    """The gradient of x where nothing was read, with rows of channels in memory as the others."""
    return x.new_zeros((x.shape[0], x.shape[-1], *x.shape[1:-1])).movedim(1, -1)


def _split(rows: Tensor, segments: Sequence[Tensor]) -> list[Tensor]:
    """rows [B, N, C] as those of each segment [B, ..., N_i], in its type, each in memory of its own."""
    parts = rows.split([x.shape[-1] for x in segments], 1)
    copy = len(parts) > 1  # of one batch element a slice is contiguous, and would stay one
    form = torch.contiguous_format
    return [part.to(x.dtype, copy=copy, memory_format=form).contiguous() for part, x in zip(parts, segments)]
