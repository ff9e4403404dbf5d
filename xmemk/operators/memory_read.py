"""memory_read: Eq. 1 and 2 over all tokens or the k most similar ones of each query."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .library import Tensors, define, empty_readout, empty_usage, fake, or_empty, triton_kernel
from .native import kernels

define(
    "memory_read(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor qk, Tensor? qe, SymInt? top_k, bool return_usage,"
    " Tensor? hint=None, Tensor[]? packed=None, Tensor? centre=None) -> (Tensor readout, Tensor usage)"
)
_memory_read = torch.ops.xmemk.memory_read.default


def memory_read(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool, hint: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None"""
    mk, ms, mv = memory
    readout, usage = _memory_read(mk, ms or [], mv, *queries, top_k, return_usage, hint)
    return readout, usage if return_usage else None


@fake("memory_read")
def _fake(
    mk: Tensors, ms: Tensors, mv: Tensors, qk: Tensor, qe: Tensor | None, top_k: int | None, return_usage: bool,
    hint: Tensor | None = None, packed: Tensors | None = None, centre: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_readout(mv[0], qk.shape[2]), empty_usage(mk, qk, return_usage)


@triton_kernel("memory_read")
def _triton(
    mk: Tensors, ms: Tensors, mv: Tensors, qk: Tensor, qe: Tensor | None, top_k: int | None, return_usage: bool,
    hint: Tensor | None = None, packed: Tensors | None = None, centre: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    memory, queries = MemoryInputs(mk, ms or None, mv), QueryInputs(qk, qe)
    readout, usage = kernels().memory_read(memory, queries, top_k, return_usage)
    return readout, or_empty(usage, qk)
