"""memory_read_saving: a read that is to be differentiated, by memory_read_backward.

Beside readout and usage it returns what the backward pass of the same device needs:

    top-k   weight and index [B, Q, k] of the selected tokens
    dense   index [B, Q, 0]; and on the devices of SAVES_SOFTMAX a float32 readout, and as weight
            [B, 2, Q] what a score is to be less and what its exponential is to be multiplied by;
            on others a readout in mv's dtype, and weight [B, Q, 0]

top_k is none for a dense read, and else less than N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import plain
from ..inputs import MemoryInputs, QueryInputs
from ..modes import full_precision
from .library import (
    LIBRARY,
    SAVES_SOFTMAX,
    Tensors,
    define,
    empty_readout,
    empty_usage,
    fake,
    or_empty,
    triton_kernel,
)
from .memory_read_backward import memory_read_backward
from .native import kernels

define(
    "memory_read_saving(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, SymInt? top_k,"
    " bool return_usage, Tensor? hint=None) -> (Tensor readout, Tensor usage, Tensor weight, Tensor index)"
)
_memory_read_saving = torch.ops.xmemk.memory_read_saving.default


def memory_read_saving(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool, hint: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None, with gradients for all five inputs"""
    mk, ms, mv = memory
    if top_k is not None and top_k >= memory.tokens:
        top_k = None
    readout, usage, _, _ = _memory_read_saving(mk, ms or [], mv, *queries, top_k, return_usage, hint)
    return readout.to(mv[0].dtype), usage if return_usage else None


@fake("memory_read_saving")
def _fake(
    mk: Tensors, ms: Tensors, mv: Tensors, qk: Tensor, qe: Tensor | None, top_k: int | None, return_usage: bool,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    b, _, q = qk.shape
    readout, usage = empty_readout(mv[0], q), empty_usage(mk, qk, return_usage)
    shape = (b, q, 0 if top_k is None else top_k)
    weight, index = qk.new_empty(shape, dtype=torch.float32), qk.new_empty(shape, dtype=torch.int64)
    if qk.device.type in SAVES_SOFTMAX:
        readout = readout.to(torch.float32)
        weight = weight if top_k is not None else qk.new_empty((b, 2, q), dtype=torch.float32)
    return readout, usage, weight, index


@triton_kernel("memory_read_saving")
def _triton(
    mk: Tensors, ms: Tensors, mv: Tensors, qk: Tensor, qe: Tensor | None, top_k: int | None, return_usage: bool,
    hint: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    memory, queries = MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe)
    readout, usage, weight, index = kernels().memory_read_saving(memory, queries, top_k, return_usage)
    return readout, or_empty(usage, qk), weight, index


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mk, ms, mv, qk, qe, _, _, hint = inputs
    readout, _, weight, index = output
    ctx.segments, ctx.options = (len(mk), len(ms)), 2 + (hint is not None)  # as many as the caller gave
    ctx.mark_non_differentiable(weight, index)
    ctx.set_materialize_grads(False)
    needed = index.shape[2] == 0 and qk.device.type in SAVES_SOFTMAX  # else saving would only keep it alive
    ctx.save_for_backward(*mk, *ms, *mv, qk, qe, readout if needed else weight, weight, index)


def _backward(ctx: Any, d_readout: Tensor | None, d_usage: Tensor | None, *_: None) -> tuple[Any, ...]:
    n, m = ctx.segments
    *segments, qk, qe, readout, weight, index = ctx.saved_tensors
    mk, ms, mv = segments[:n], segments[n : n + m], segments[n + m :]
    needs = ctx.needs_input_grad
    needed = [*needs[0], *needs[1], *needs[2], needs[3], needs[4]]
    if torch.is_grad_enabled():  # for derivatives of these gradients
        memory, queries = MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe)
        grads = _gradients_with_graph(memory, queries, weight, index, (d_readout, d_usage), needed)
    else:
        grads = memory_read_backward(mk, ms, mv, qk, qe, readout, weight, index, d_readout, d_usage, needed)
    kept = [g if need else None for g, need in zip(grads, needed)]
    return kept[:n], kept[n : n + m], kept[n + m : -2], kept[-2], kept[-1], *([None] * ctx.options)


def _gradients_with_graph(
    memory: MemoryInputs, queries: QueryInputs, weight: Tensor, index: Tensor,
    upstream: tuple[Tensor | None, Tensor | None], needed: list[bool],
) -> list[Tensor | None]:  # fmt: skip
    layout, tensors = plain.ReadTensors.of(memory, queries)
    return_usage = upstream[1] is not None

    def read(*tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = layout.structs(tensors)
        if index.shape[2] > 0:
            readout, usage = plain.read_selected(*inputs, weight, index, return_usage)
        else:
            readout, usage = plain.memory_read(*inputs, None, return_usage)
        return (readout,) if usage is None else (readout, usage)

    with full_precision(queries.qk):
        return plain.gradients(read, tensors, needed, upstream)


torch.library.register_autograd("xmemk::memory_read_saving", _backward, setup_context=_save, lib=LIBRARY)
