"""affinity_topk: the k most similar tokens of each query, and their weights.

hint, packed and centre change the time of a top-k read on the CPU, never its result
(packed_keys.py). hint [B, Q, k'] int64: tokens that are likely to be among the best, such as last
frame's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .library import Tensors, define, empty_usage, fake, or_empty, triton_kernel
from .native import kernels

define(
    "affinity_topk(Tensor[] mk, Tensor[] ms, Tensor qk, Tensor? qe, SymInt top_k, bool return_usage,"
    " Tensor? hint=None, Tensor[]? packed=None, Tensor? centre=None)"
    " -> (Tensor weight, Tensor index, Tensor usage)"
)
_affinity_topk = torch.ops.xmemk.affinity_topk.default


def affinity_topk(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, return_usage: bool, hint: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N), usage [B, N] or None"""
    weight, index, usage = _affinity_topk(memory.mk, memory.ms or [], *queries, top_k, return_usage, hint)
    return weight, index, usage if return_usage else None


@fake("affinity_topk")
def _fake(
    mk: Tensors, ms: Tensors, qk: Tensor, qe: Tensor | None, top_k: int, return_usage: bool,
    hint: Tensor | None = None, packed: Tensors | None = None, centre: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = (qk.shape[0], qk.shape[2], torch.sym_min(top_k, sum(k.shape[2] for k in mk)))
    weight = qk.new_empty(shape, dtype=torch.float32)
    return weight, qk.new_empty(shape, dtype=torch.int64), empty_usage(mk, qk, return_usage)


@triton_kernel("affinity_topk")
def _triton(
    mk: Tensors, ms: Tensors, qk: Tensor, qe: Tensor | None, top_k: int, return_usage: bool,
    hint: Tensor | None = None, packed: Tensors | None = None, centre: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    memory, queries = MemoryInputs(mk, ms or None, []), QueryInputs(qk, qe)
    weight, index, usage = kernels().affinity_topk(memory, queries, top_k, return_usage)
    return weight, index, or_empty(usage, qk)
