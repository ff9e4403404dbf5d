"""Memory read: similarity, softmax over all or the k best tokens, readout, usage (Eq. 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .affinity_topk import affinity_topk, selected_scores, softmax, usage_of
from .blocks import query_blocks
from .operands import operands
from .readout_topk import read_tokens
from .weighted_sum import weighted_sum


def memory_read(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q], usage [B, N] or None"""
    if top_k is not None and top_k < memory.tokens:
        weight, index, usage = affinity_topk(memory, queries, top_k, return_usage)
        return read_tokens(memory.mv, weight, index), usage
    return _read_dense(memory, queries, return_usage)


def read_selected(
    memory: MemoryInputs, queries: QueryInputs, weight: Tensor, index: Tensor, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """The same of tokens that are selected already: of ``index``, where ``weight`` is not 0."""
    weight = softmax(selected_scores(memory, queries, index, weight != 0))
    usage = usage_of(weight, index, memory.tokens) if return_usage else None
    return read_tokens(memory.mv, weight, index), usage


def _read_dense(memory: MemoryInputs, queries: QueryInputs, return_usage: bool) -> tuple[Tensor, Tensor | None]:
    sides = operands(memory, queries)
    values = [v.to(sides.query.dtype).transpose(2, 3) for v in memory.mv]  # [B, O, N, CV]
    objects, channels = memory.mv[0].shape[1:3]
    usage = sides.memory.new_zeros(sides.memory.shape[0], sides.memory.shape[2]) if return_usage else None
    blocks = []
    for a, b in query_blocks(sides):
        affinity = sides.scores(a, b).softmax(2)
        if usage is not None:
            usage = usage + affinity.sum(1) if sides.safe else usage + affinity.nan_to_num(0.0).sum(1)
        # One object after the other, so that the block of affinity stays in the cache.
        read = [weighted_sum(affinity, [v[:, i] for v in values]) for i in range(objects)]
        blocks.append(torch.stack(read, 1) if read else affinity.new_zeros(affinity.shape[0], 0, b - a, channels))
    readout = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)
    return readout.to(memory.mv[0].dtype).transpose(2, 3), usage
