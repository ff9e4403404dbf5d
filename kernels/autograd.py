"""memory_read with gradients: saves its inputs, and of a top-k read the weights and indices [B, Q, k]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dense_backward, dense_read, topk_backward
from .topk_affinity import affinity_topk
from .topk_readout import readout_topk

Parts = tuple[list[Tensor], list[Tensor] | None, list[Tensor], Tensor, Tensor | None]


def memory_read(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None, with gradients for mk, ms, mv, qk and qe."""
    readout, usage = MemoryRead.apply(len(mk), ms is not None, top_k, return_usage, *mk, *(ms or ()), *mv, qk, qe)
    return readout, usage


class MemoryRead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, segments: int, with_ms: bool, top_k: int | None, return_usage: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        mk, ms, mv, qk, qe = _parts(segments, with_ms, tensors)
        ctx.call = (segments, with_ms)
        ctx.set_materialize_grads(False)
        chosen: tuple[Tensor, ...] = ()
        if top_k is not None and top_k < sum(k.shape[2] for k in mk):
            weight, index, usage = affinity_topk(mk, ms, qk, qe, top_k, return_usage)
            readout = readout_topk(mv, weight, index)
            chosen = (weight, index)
        else:
            readout, usage = dense_read.memory_read(mk, ms, mv, qk, qe, return_usage)
        ctx.save_for_backward(*tensors, *chosen)
        ctx.sparse = bool(chosen)
        return readout, usage

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_readout: Tensor | None, d_usage: Tensor | None) -> tuple[Tensor | None, ...]:
        segments, with_ms = ctx.call
        saved = ctx.saved_tensors
        chosen = saved[-2:] if ctx.sparse else ()
        tensors = saved[: len(saved) - len(chosen)]
        if d_readout is None and d_usage is None:
            return (None,) * (4 + len(tensors))
        mk, ms, mv, qk, qe = _parts(segments, with_ms, tensors)
        if d_readout is None:
            d_readout = mv[0].new_zeros(*mv[0].shape[:3], qk.shape[2])
        backward = topk_backward.memory_read_backward if ctx.sparse else dense_backward.memory_read_backward
        dk, ds, dv, dq, de = backward(mk, ms, mv, qk, qe, *chosen, d_readout, d_usage)
        grads: list[Tensor | None] = [g.transpose(1, 2).to(qk.dtype) for g in dk.split([k.shape[2] for k in mk], 1)]
        if ms is not None and ds is not None:
            pieces = ds.split([s.shape[2] for s in ms], 1)
            grads += [g.transpose(1, 2).to(s.dtype) for g, s in zip(pieces, ms)]
        o, cv = mv[0].shape[1:3]
        for g in dv.split([v.shape[3] for v in mv], 1):
            grads.append(g.unflatten(2, (o, cv)).permute(0, 2, 3, 1).to(mv[0].dtype))
        grads += [dq.transpose(1, 2).to(qk.dtype), None if de is None else de.transpose(1, 2).to(qk.dtype)]
        return None, None, None, None, *grads


def _parts(segments: int, with_ms: bool, tensors: tuple[Any, ...]) -> Parts:
    lists = [list(tensors[i : i + segments]) for i in range(0, len(tensors) - 2, segments)]
    return lists[0], lists[1] if with_ms else None, lists[-1], tensors[-2], tensors[-1]
