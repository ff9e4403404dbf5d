"""The operators of backend "triton" for a read that is to be differentiated: schemas, fakes, kernels, gradients.

Eager code and torch.compile take the same way. They are registered for CPU tensors too, for Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import ops
from .inputs import MemoryInputs, QueryInputs

# The memory as in ops.py; top_k is none for all tokens and else less than N. Beside readout and usage (empty unless it
# is wanted) it returns weight and index [B, Q, k] of the selected tokens, with k = 0 where all are read.
ops.LIBRARY.define(
    "memory_read_triton(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, SymInt? top_k, bool return_usage)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# One bool in `wanted` and one gradient for each of mk.., ms.., mv.., qk, qe; those that are not wanted are empty.
ops.LIBRARY.define(
    "memory_read_triton_backward(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, Tensor weight,"
    " Tensor index, Tensor? d_readout, Tensor? d_usage, bool[] wanted) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


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
    if top_k is not None and top_k >= sum(k.shape[2] for k in mk):
        top_k = None
    readout, usage, _, _ = torch.ops.xmemk.memory_read_triton(mk, ms or [], mv, qk, qe, top_k, return_usage)
    return readout, usage if return_usage else None


@torch.library.register_fake("xmemk::memory_read_triton", lib=ops.LIBRARY)
def _(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, _, q = qk.shape
    chosen = (b, q, 0 if top_k is None else top_k)
    weight, index = qk.new_empty(chosen, dtype=torch.float32), qk.new_empty(chosen, dtype=torch.int64)
    return ops.token_major(mv[0], q), ops.fake_usage(mk, qk, return_usage), weight, index


@torch.library.register_fake("xmemk::memory_read_triton_backward", lib=ops.LIBRARY)
def _(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    weight: Tensor,
    index: Tensor,
    d_readout: Tensor | None,
    d_usage: Tensor | None,
    wanted: list[bool],
) -> list[Tensor]:
    return ops.fake_gradients((*mk, *ms, *mv, qk, qe), qk, wanted)


def _forward(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    top_k: int | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    read = ops.kernels().memory_read_saving
    readout, usage, weight, index = read(MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe), top_k, return_usage)
    return readout, ops.fake_usage(mk, qk, False) if usage is None else usage, weight, index


def _gradients(
    mk: list[Tensor],
    ms: list[Tensor],
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    weight: Tensor,
    index: Tensor,
    d_readout: Tensor | None,
    d_usage: Tensor | None,
    wanted: list[bool],
) -> list[Tensor]:
    # Of several segments of a kind all are computed, or none.
    n, m = len(mk), len(ms)
    kinds = (any(wanted[:n]), any(wanted[n : n + m]), any(wanted[n + m : -2]), *wanted[-2:])
    backward = ops.kernels().memory_read_backward
    dk, ds, dv, dq, de = backward(
        MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe), weight, index, d_readout, d_usage, kinds
    )
    every = (*(dk or [None] * n), *(ds or [None] * m), *(dv or [None] * n), dq, de)
    return [g if want and g is not None else qk.new_empty((0,)) for g, want in zip(every, wanted)]


for _device in ("CUDA", "CPU"):
    ops.LIBRARY.impl("memory_read_triton", _forward, _device)
    ops.LIBRARY.impl("memory_read_triton_backward", _gradients, _device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mk, ms, mv, qk, qe, _, _ = inputs
    ctx.segments = (len(mk), len(ms))
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*mk, *ms, *mv, qk, qe, *output[2:])


def _backward(ctx: Any, d_readout: Tensor | None, d_usage: Tensor | None, *_: None) -> tuple[Any, ...]:
    n, m = ctx.segments
    *memory, qk, qe, weight, index = ctx.saved_tensors
    mk, ms, mv = memory[:n], memory[n : n + m], memory[n + m :]
    needs = ctx.needs_input_grad
    wanted = [*needs[0], *needs[1], *needs[2], needs[3], needs[4]]
    backward = torch.ops.xmemk.memory_read_triton_backward
    grads = backward(mk, ms, mv, qk, qe, weight, index, d_readout, d_usage, wanted)
    kept = [g if w else None for g, w in zip(grads, wanted)]
    return kept[:n], kept[n : n + m], kept[n + m : -2], kept[-2], kept[-1], None, None


def _no_second_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "memory_read: the Triton backward pass cannot be differentiated again; xmemk.reference.memory_read can"
    )


torch.library.register_autograd("xmemk::memory_read_triton", _backward, setup_context=_save, lib=ops.LIBRARY)
torch.library.register_autograd("xmemk::memory_read_triton_backward", _no_second_backward, lib=ops.LIBRARY)
