"""What keeps a backward pass from storing N x Q matrices: an autograd.Function, and the operators' own gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops, plain
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mk, ms, mv, qk, qe, _, _ = inputs
    readout, _, weight, index = output
    ctx.segments = (len(mk), len(ms))
    ctx.mark_non_differentiable(weight, index)
    ctx.set_materialize_grads(False)
    # The readout is needed where all tokens are read; of a top-k read it would only be kept alive.
    ctx.save_for_backward(*mk, *ms, *mv, qk, qe, readout if index.shape[2] == 0 else weight, weight, index)


def _backward(ctx: Any, d_readout: Tensor | None, d_usage: Tensor | None, *_: None) -> tuple[Any, ...]:
    n, m = ctx.segments
    *memory, qk, qe, readout, weight, index = ctx.saved_tensors
    mk, ms, mv = memory[:n], memory[n : n + m], memory[n + m :]
    needs = ctx.needs_input_grad
    wanted = [*needs[0], *needs[1], *needs[2], needs[3], needs[4]]
    grads = torch.ops.xmemk.memory_read_backward(mk, ms, mv, qk, qe, readout, weight, index, d_readout, d_usage, wanted)
    kept = [g if w else None for g, w in zip(grads, wanted)]
    return kept[:n], kept[n : n + m], kept[n + m : -2], kept[-2], kept[-1], None, None


def _no_second_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "memory_read: the C++ backward pass cannot be differentiated again; xmemk.reference.memory_read can"
    )


torch.library.register_autograd("xmemk::memory_read_saving", _backward, setup_context=_save, lib=ops.LIBRARY)
torch.library.register_autograd("xmemk::memory_read_backward", _no_second_backward, lib=ops.LIBRARY)
