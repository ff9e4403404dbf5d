"""The k most similar tokens of each query, and the softmax of their scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .blocks import queries_at_a_time, query_blocks
from .operands import operands
from .tokens import gather_rows
from .topk_rows import topk_rows


def affinity_topk(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, return_usage: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N), usage [B, N] or None"""
    sides = operands(memory, queries)
    blocks = [_select(sides.scores(a, b), top_k) for a, b in query_blocks(sides)]
    best, index = (torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*blocks))
    best, index = _rescored(memory, queries, best, index)
    # Where fewer than k tokens can be read, the slots left over repeat the best, with weight 0.
    weight, index = best.softmax(2), torch.where(best == -math.inf, index[..., :1], index)
    return weight, index, _usage(weight, index, memory.tokens) if return_usage else None


def _select(score: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    if top_k < score.shape[2]:
        return topk_rows(score, top_k)
    best, index = score.sort(dim=2, descending=True, stable=True)
    return best, index


def _rescored(memory: MemoryInputs, queries: QueryInputs, best: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The selected tokens with scores by the direct form of Eq. 2, which cancels nothing."""
    dtype = best.dtype
    ck = queries.qk.shape[1]
    q = queries.qk.to(dtype).transpose(1, 2)
    e = None if queries.qe is None else queries.qe.to(dtype).transpose(1, 2)
    scores = []
    step = queries_at_a_time(index.shape[1], index.shape[0] * index.shape[2] * ck)
    for a in range(0, index.shape[1], max(1, step)):
        i = index[:, a : a + step]
        squared = (gather_rows(memory.mk, i, dtype) - q[:, a : a + step].unsqueeze(2)).square()
        if e is not None:
            squared = squared * e[:, a : a + step].unsqueeze(2)
        score = -squared.sum(3) / math.sqrt(ck)
        scores.append(score if memory.ms is None else score * gather_rows(memory.ms, i, dtype)[..., 0])
    exact = torch.cat(scores, 1) if scores else best
    exact = torch.where((best == -math.inf) | exact.isnan(), -math.inf, exact)
    # Rounding may have put two tokens the wrong way round. Equal scores keep the lower index first.
    by_index = index.argsort(dim=2)
    order = by_index.gather(2, exact.gather(2, by_index).argsort(dim=2, descending=True, stable=True))
    return exact.gather(2, order), index.gather(2, order)


def _usage(weight: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Probability mass of each token [B, N], in weight's dtype. A query that reads NaN adds 0."""
    usage = weight.new_zeros(weight.shape[0], tokens)
    return usage.scatter_add_(1, index.flatten(1), weight.flatten(1).nan_to_num(0.0))
