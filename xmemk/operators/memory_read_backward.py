"""memory_read_backward: the gradients of memory_read_saving, shaped and typed as its inputs.

``needed`` has one bool for each of mk.., ms.., mv.., qk, qe, and the result one gradient; those
that are not needed are empty. readout, weight and index are what memory_read_saving returned. Only
a dense read on a device of SAVES_SOFTMAX needs the readout; any tensor may stand in its place
elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .library import LIBRARY, Tensors, define, fake, triton_kernel
from .native import kernels

define(
    "memory_read_backward(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, Tensor readout,"
    " Tensor weight, Tensor index, Tensor? d_readout, Tensor? d_usage, bool[] needed) -> Tensor[]"
)
memory_read_backward = torch.ops.xmemk.memory_read_backward.default


@fake("memory_read_backward")
def _fake(mk: Tensors, ms: Tensors, mv: Tensors, qk: Tensor, qe: Tensor | None, *saved: Any) -> Tensors:
    needed: list[bool] = saved[-1]
    # Rows of channels, one for each token.
    return [
        x.new_empty((x.shape[0], x.shape[-1], *x.shape[1:-1])).movedim(1, -1)
        if x is not None and need
        else qk.new_empty((0,))
        for x, need in zip((*mk, *ms, *mv, qk, qe), needed)
    ]


@triton_kernel("memory_read_backward")
def _triton(mk: Tensors, ms: Tensors, mv: Tensors, qk: Tensor, qe: Tensor | None, *saved: Any) -> Tensors:
    _, weight, index, d_readout, d_usage, needed = saved
    # Of several segments of a kind all are computed, or none.
    n, m = len(mk), len(ms)
    kinds = (any(needed[:n]), any(needed[n : n + m]), any(needed[n + m : -2]), *needed[-2:])
    memory, queries = MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe)
    backward = kernels().memory_read_backward
    dk, ds, dv, dq, de = backward(memory, queries, weight, index, d_readout, d_usage, kinds)
    every = (*(dk or [None] * n), *(ds or [None] * m), *(dv or [None] * n), dq, de)
    return [g if need and g is not None else qk.new_empty((0,)) for g, need in zip(every, needed)]


def _no_second_backward(ctx: Any, *_: Any) -> None:
    raise RuntimeError("memory_read: the backward pass cannot be differentiated again; xmemk.reference.memory_read can")


torch.library.register_autograd("xmemk::memory_read_backward", _no_second_backward, lib=LIBRARY)
