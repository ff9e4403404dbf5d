"""autograd.Function wrappers: what keeps a backward pass from storing N x Q matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import plain
from .plain.backward import memory_read_backward


class MemoryRead(torch.autograd.Function):
    """memory_read that saves its inputs alone and recomputes the affinity in the backward pass, block by block."""

    @staticmethod
    def forward(
        ctx: Any, segments: int, with_ms: bool, top_k: int | None, return_usage: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(*tensors)
        ctx.call = (segments, with_ms, top_k)
        ctx.set_materialize_grads(False)
        mk, ms, mv, qk, qe = _unpack(segments, with_ms, tensors)
        return plain.memory_read(mk, ms, mv, qk, qe, top_k, return_usage)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_readout: Tensor | None, d_usage: Tensor | None) -> tuple[Tensor | None, ...]:
        segments, with_ms, top_k = ctx.call
        mk, ms, mv, qk, qe = _unpack(segments, with_ms, ctx.saved_tensors)
        if d_readout is None:
            if d_usage is None:
                return (None,) * (4 + len(ctx.saved_tensors))
            d_readout = mv[0].new_zeros(*mv[0].shape[:3], qk.shape[2])
        grads = memory_read_backward(mk, ms, mv, qk, qe, top_k, d_readout, d_usage)
        return None, None, None, None, *grads.mk, *(grads.ms or ()), *grads.mv, grads.qk, grads.qe


def memory_read(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """plain.memory_read with gradients for mk, ms, mv, qk and qe."""
    tensors = (*mk, *(ms or ()), *mv, qk, qe)
    readout, usage = MemoryRead.apply(len(mk), ms is not None, top_k, return_usage, *tensors)
    return readout, usage


def _unpack(
    segments: int, with_ms: bool, tensors: tuple[Any, ...]
) -> tuple[list[Tensor], list[Tensor] | None, list[Tensor], Tensor, Tensor | None]:
    lists = [list(tensors[i : i + segments]) for i in range(0, len(tensors) - 2, segments)]
    mk, mv = lists[0], lists[-1]
    return mk, lists[1] if with_ms else None, mv, tensors[-2], tensors[-1]
