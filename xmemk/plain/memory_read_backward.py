"""Gradients of the memory read without the N x Q matrices.

The affinity is computed again for a block of queries at a time. With
S_ij = -(s_i / sqrt(CK)) D_ij, D_ij = sum_c e_cj (k_ci - q_cj)^2, W the softmax of S over i,
and dF, dU the gradients of readout and usage:

    dW_ij = v_i . dF_j + dU_i          dv_i = sum_j W_ij dF_j
    dS_ij = W_ij (dW_ij - sum_i W_ij dW_ij)
    H_ij  = dL/dD_ij = -(s_i / sqrt(CK)) dS_ij
    dk_i  = 2 sum_j H_ij e_j (k_i - q_j)        ds_i = -sum_j dS_ij D_ij / sqrt(CK)
    dq_j  = -2 e_j sum_i H_ij (k_i - q_j)       de_j = sum_i H_ij (k_i - q_j)^2

The top-k read has the same sums over the selected tokens only, since the selection is piecewise
constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .affinity_topk import affinity_topk
from .blocks import queries_at_a_time, query_blocks
from .operands import Operands, center_key, compute_dtype, operands
from .readout_topk import readout_gradients
from .tokens import gather_rows, new_rows, scatter_rows

Gradients = tuple[MemoryInputs, QueryInputs]  # each gradient in the place of its input


def memory_read_backward(
    memory: MemoryInputs, queries: QueryInputs, top_k: int | None, d_readout: Tensor, d_usage: Tensor | None
) -> Gradients:
    """Gradients in the dtypes of the inputs. d_readout [B, O, CV, Q], d_usage [B, N] or None."""
    dtype = compute_dtype(queries.qk.dtype)
    d_readout = d_readout.to(dtype).permute(0, 3, 1, 2).flatten(2)  # [B, Q, O * CV]
    d_usage = None if d_usage is None else d_usage.to(dtype)
    tokens = memory.tokens
    if top_k is not None and top_k < tokens:
        weight, index, _ = affinity_topk(memory, queries, top_k)
        d_memory, d_queries = _topk(memory, queries, weight, index, d_readout, d_usage)
    elif (sides := operands(memory, queries)).direct is not None:
        # The expanded sums over all tokens would overflow; those over selected tokens are direct.
        weight, index, _ = affinity_topk(memory, queries, tokens)
        index = torch.where(weight.isnan(), torch.arange(tokens, device=index.device), index)
        d_memory, d_queries = _topk(memory, queries, weight, index, d_readout, d_usage)
    else:
        d_memory, d_queries = _dense(memory, queries, sides, d_readout, d_usage)
    return MemoryInputs(
        [g.to(k.dtype) for g, k in zip(d_memory.mk, memory.mk)],
        None if memory.ms is None or d_memory.ms is None else [g.to(s.dtype) for g, s in zip(d_memory.ms, memory.ms)],
        [g.to(v.dtype) for g, v in zip(d_memory.mv, memory.mv)],
    ), QueryInputs(
        d_queries.qk.to(queries.qk.dtype),
        None if queries.qe is None or d_queries.qe is None else d_queries.qe.to(queries.qe.dtype),
    )


def _dense(
    memory: MemoryInputs, queries: QueryInputs, sides: Operands, d_readout: Tensor, d_usage: Tensor | None
) -> Gradients:
    b, ck, _ = queries.qk.shape
    _, o, cv, _ = memory.mv[0].shape
    sizes = [k.shape[2] for k in memory.mk]
    dtype = sides.query.dtype
    center = center_key(memory.mk)
    # Tokens as rows: k, q [B, N or Q, CK]. A translation changes neither D nor the sums below.
    k = torch.cat([x.to(dtype) - center for x in memory.mk], 2).transpose(1, 2)
    q = (queries.qk.to(dtype) - center).transpose(1, 2)
    e = torch.ones_like(q) if queries.qe is None else queries.qe.to(dtype).transpose(1, 2)
    s = k.new_ones(b, 1, k.shape[1]) if memory.ms is None else torch.cat([x.to(dtype) for x in memory.ms], 2)
    values = [v.to(dtype).flatten(1, 2) for v in memory.mv]
    # A token that cannot be read has weight 0; times what is not finite that would be NaN.
    k, s = (torch.where(x.square().isfinite(), x, 0.0) for x in (k, s))
    k_squared = k.square()
    dk_e, dk_eq = torch.zeros_like(k), torch.zeros_like(k)
    ds = k.new_zeros(b, k.shape[1])
    dv = [x.new_zeros(b, n, o * cv) for x, n in zip(values, sizes)]
    dq, de = torch.empty_like(q), torch.empty_like(q)
    root = math.sqrt(ck)
    for start, stop in query_blocks(sides):
        qb, eb, d_out = q[:, start:stop], e[:, start:stop], d_readout[:, start:stop]
        score = sides.scores(start, stop)
        w = score.softmax(2)
        dw = torch.cat([d_out @ v for v in values], 2)
        if d_usage is not None:
            dw = dw + d_usage.unsqueeze(1)
        for part, grad in zip(w.split(sizes, 2), dv):
            grad.baddbmm_(part.transpose(1, 2), d_out)
        d_score = w * (dw - (w * dw).sum(2, keepdim=True))
        # S = -(s / sqrt(CK)) D gives no D where s is 0, so D is computed anew.
        distance = (k_squared @ eb.transpose(1, 2) - 2 * (k @ (eb * qb).transpose(1, 2))).transpose(1, 2)
        distance = distance + (eb * qb.square()).sum(2, keepdim=True)
        ds = ds - (d_score * distance).sum(1) / root
        h = d_score * (-s / root)
        ht = h.transpose(1, 2)
        dk_e.baddbmm_(ht, eb)
        dk_eq.baddbmm_(ht, eb * qb)
        hk, total = h @ k, h.sum(2, keepdim=True)
        dq[:, start:stop] = -2 * eb * (hk - qb * total)
        de[:, start:stop] = h @ k_squared - 2 * qb * hk + qb.square() * total
    dk = 2 * (k * dk_e - dk_eq)
    d_memory = MemoryInputs(
        list(dk.transpose(1, 2).split(sizes, 2)),
        None if memory.ms is None else list(ds.unsqueeze(1).split(sizes, 2)),
        [g.transpose(1, 2).unflatten(1, (o, cv)) for g in dv],
    )
    return d_memory, QueryInputs(dq.transpose(1, 2), None if queries.qe is None else de.transpose(1, 2))


def _topk(
    memory: MemoryInputs, queries: QueryInputs, weight: Tensor, index: Tensor,
    d_readout: Tensor, d_usage: Tensor | None,
) -> Gradients:  # fmt: skip
    mk, ms, mv = memory
    b, ck, q_tokens = queries.qk.shape
    dtype = weight.dtype
    root = math.sqrt(ck)
    q = queries.qk.to(dtype).transpose(1, 2)
    e = torch.ones_like(q) if queries.qe is None else queries.qe.to(dtype).transpose(1, 2)
    dw, d_values = readout_gradients(mv, weight, index, d_readout)
    if d_usage is not None:
        dw = dw + d_usage.gather(1, index.flatten(1)).view_as(dw)
    d_scores = weight * (dw - (weight * dw).sum(2, keepdim=True))
    dk, ds = new_rows(mk, dtype), new_rows([x[:, :1] for x in mk], dtype)
    dq, de = torch.empty_like(q), torch.empty_like(q)
    step = max(1, queries_at_a_time(q_tokens, b * index.shape[2] * ck))
    for start in range(0, q_tokens, step):
        span = slice(start, start + step)
        d_score, i, eb = d_scores[:, span], index[:, span], e[:, span].unsqueeze(2)
        difference = gather_rows(mk, i, dtype) - q[:, span].unsqueeze(2)  # [B, q, k, CK]
        # A slot of weight 0 has no share, whatever its token's numbers are.
        difference = difference.where((weight[:, span] != 0).unsqueeze(3), 0.0)
        s = 1.0 if ms is None else gather_rows(ms, i, dtype)[..., 0]
        h = (d_score * (-s / root)).where(d_score != 0, 0.0).unsqueeze(3)
        pull = h * difference
        distance = ((eb * difference) * difference).sum(3)
        scatter_rows(ds, mk, i, (-d_score / root * distance).unsqueeze(3))
        scatter_rows(dk, mk, i, 2 * eb * pull)
        dq[:, span] = -2 * e[:, span] * pull.sum(2)
        de[:, span] = (pull * difference).sum(2)
    d_memory = MemoryInputs(
        [g.view(b, x.shape[2], ck).transpose(1, 2) for g, x in zip(dk, mk)],
        None if ms is None else [g.view(b, 1, x.shape[2]) for g, x in zip(ds, mk)],
        d_values,
    )
    return d_memory, QueryInputs(dq.transpose(1, 2), None if queries.qe is None else de.transpose(1, 2))
