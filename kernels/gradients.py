"""memory_read for what is to be differentiated: a forward that keeps what a top-k read selected, and a backward.

The forward returns, beside readout and usage, weight and index [B, Q, k] of the selected tokens, with k = 0 where all
are read: then the backward computes the weights again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dense_backward, dense_read, topk_backward
from .topk_affinity import affinity_topk
from .topk_readout import readout_topk
from .wanted import ALL, Wanted


def memory_read_saving(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """-> readout [B, O, CV, Q], usage [B, N] or None, weight, index. ``top_k`` is None or less than N."""
    if top_k is not None:
        weight, index, usage = affinity_topk(mk, ms, qk, qe, top_k, return_usage)
        return readout_topk(mv, weight, index), usage, weight, index
    readout, usage = dense_read.memory_read(mk, ms, mv, qk, qe, return_usage)
    none = qk.new_empty((qk.shape[0], qk.shape[2], 0))
    return readout, usage, none.float(), none.long()


def memory_read_backward(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    weight: Tensor,
    index: Tensor,
    d_readout: Tensor | None,
    d_usage: Tensor | None,
    wanted: Wanted = ALL,
) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor] | None, Tensor | None, Tensor | None]:
    """Gradients of mk, ms, mv, qk and qe in their types, rows of channels in memory; None for what is not wanted, and
    for ms and qe where there is none.
    """
    if qk.shape[0] == 0 or qk.shape[2] == 0:  # nothing was read
        parts = ((mk, wanted.mk), (ms, wanted.ms), (mv, wanted.mv))
        zeros = [[_zeros(x) for x in part] if part is not None and want else None for part, want in parts]
        queries = [_zeros(x) if x is not None and want else None for x, want in ((qk, wanted.qk), (qe, wanted.qe))]
        return zeros[0], zeros[1], zeros[2], queries[0], queries[1]
    if d_readout is None:
        d_readout = mv[0].new_zeros((*mv[0].shape[:3], qk.shape[2]))
    if index.shape[2] > 0:
        grads = topk_backward.memory_read_backward(mk, ms, mv, qk, qe, weight, index, d_readout, d_usage, wanted)
    else:
        grads = dense_backward.memory_read_backward(mk, ms, mv, qk, qe, d_readout, d_usage, wanted)
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
