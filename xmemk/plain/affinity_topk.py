"""The k most similar tokens of each query, and the softmax of their scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .blocks import queries_at_a_time, query_blocks, terms_at_a_time
from .operands import compute_dtype, operands
from .tokens import gather_rows
from .topk_rows import topk_rows


def affinity_topk(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, return_usage: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k], index [B, Q, k] with k = min(top_k, N), usage [B, N] or None"""
    sides = operands(memory, queries)
    blocks = [_select(sides.scores(a, b), top_k) for a, b in query_blocks(sides)]
    best, index = (torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*blocks))
    best, index = _in_order(selected_scores(memory, queries, index, best > -math.inf), index)
    # Where fewer than k tokens can be read, the slots left over repeat the best, with weight 0.
    weight, index = softmax(best), torch.where(best == -math.inf, index[..., :1], index)
    return weight, index, usage_of(weight, index, memory.tokens) if return_usage else None


def selected_scores(memory: MemoryInputs, queries: QueryInputs, index: Tensor, readable: Tensor) -> Tensor:
    """Scores [B, Q, k] of selected tokens by the direct form of Eq. 2, which cancels nothing.

    Those that are not ``readable``, and those that are not finite, are -inf.
    """
    dtype = compute_dtype(queries.qk.dtype)
    ck = queries.qk.shape[1]
    q = queries.qk.to(dtype).transpose(1, 2)
    e = None if queries.qe is None else queries.qe.to(dtype).transpose(1, 2)
    scores = []
    step = queries_at_a_time(index.shape[1], index.shape[0] * index.shape[2] * ck)
    for a in range(0, index.shape[1], max(1, step)):
        i = index[:, a : a + step]
        difference = gather_rows(memory.mk, i, dtype) - q[:, a : a + step].unsqueeze(2)
        # Of a slot that is not read nothing is to reach a gradient.
        difference = difference.where(readable[:, a : a + step].unsqueeze(3), 0.0)
        pull = difference if e is None else difference * e[:, a : a + step].unsqueeze(2)
        score = -(pull * difference).sum(3) / math.sqrt(ck)
        if memory.ms is not None:
            s = gather_rows(memory.ms, i, dtype)[..., 0]
            score = score * s.where(readable[:, a : a + step], 0.0)
        scores.append(score)
    exact = torch.cat(scores, 1) if scores else queries.qk.new_zeros(index.shape, dtype=dtype)
    return torch.where(readable & (exact < math.inf), exact, -math.inf)  # NaN compares false


def softmax(score: Tensor) -> Tensor:
    """Over the last dimension; thousands of weights sum to 1 as exactly as a few."""
    weight = score.softmax(2)
    return weight / weight.sum(2, keepdim=True)


def usage_of(weight: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Probability mass of each token [B, N], in weight's dtype. A query that reads NaN adds 0."""
    b, q = weight.shape[:2]
    step = terms_at_a_time(q)
    chains = max(1, -(-q // step))
    chain = torch.arange(q, device=index.device).view(1, q, 1) // step
    usage = weight.new_zeros(b, chains * tokens)
    usage = usage.scatter_add(1, (index + chain * tokens).flatten(1), weight.flatten(1).nan_to_num(0.0))
    return usage.view(b, chains, tokens).sum(1)


def _select(score: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    if top_k < score.shape[2]:
        return topk_rows(score, top_k)
    best, index = score.sort(dim=2, descending=True, stable=True)
    return best, index


def _in_order(exact: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Best first: rounding may have put two tokens the wrong way round. Equal scores keep the lower
    index first.
    """
    by_index = index.argsort(dim=2)
    order = by_index.gather(2, exact.gather(2, by_index).argsort(dim=2, descending=True, stable=True))
    return exact.gather(2, order), index.gather(2, order)
