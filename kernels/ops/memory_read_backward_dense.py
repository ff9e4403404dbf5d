"""Gradients of the read of all tokens, a block of queries at a time.

With S_ij = -(s_i / sqrt(CK)) D_ij, D_ij = sum_c e k^2 - 2 e q k + e q^2, W the softmax of S over i, and dF, dU the
gradients of readout and usage:

    dW_ij = v_i . dF_j + dU_i        dS_ij = W_ij (dW_ij - sum_i W_ij dW_ij)        dv_i = sum_j W_ij dF_j
    [A1 | A2 | a]_i = sum_j dS_ij [e | e q | sum_c e q^2]_j
        dk_i = -2 (s_i / sqrt(CK)) (k_i A1_i - A2_i)        ds_i = -(k_i^2 . A1_i - 2 k_i . A2_i + a_i) / sqrt(CK)
    [B1 | B2 | b]_j = sum_i dS_ij [h k^2 | h k | h]_i,  h_i = -s_i / sqrt(CK)
        dq_j = -2 e_j (B2_j - q_j b_j)        de_j = B1_j - 2 q_j B2_j + q_j^2 b_j

Weights come from the forward's kernels, stored as what multiplies values; dS from the one here, in three bfloat16
parts. The four products are made in 16 bits to float32 accuracy (products.py), whatever precision PyTorch's own have.
Keys and queries are centred on the median key; the gradients do not depend on the centre. There are no atomics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...inputs import MemoryInputs, QueryInputs
from ..products import in_parts, multiply
from ..structs import Requested, query_args, segments
from ..tiles import in_three_parts
from .memory_read_lse import affinity
from .memory_read_weights import BLOCK_ROWS, FORMATS, HALF_SCALE, weights

PAIR_BYTES = 64 << 20  # of dW at a time; W and dS take up to half more, each
BLOCK = 1024  # tokens that a program takes at a time

_BLOCK = tl.constexpr(BLOCK)

Rows = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def memory_read_backward(
    memory: MemoryInputs, queries: QueryInputs, d_readout: Tensor, d_usage: Tensor | None, requested: Requested
) -> Rows:
    """Float32 gradients with tokens and queries as rows. d_readout [B, O, CV, Q], d_usage [B, N] or None.

    Of keys [B, N, CK] and values [B, N, O * CV] of all segments, shrinkage [B, N, 1], queries and selection [B, Q, CK].
    What is not requested is None, and what nothing else needs is not computed.
    """
    (mk, ms, mv), (qk, qe) = memory, queries
    b, ck, q = qk.shape
    a = affinity(segments(memory), query_args(queries))
    n, np, qp = a.memory.tokens, a.operands.NP, a.operands.QP
    root = math.sqrt(ck)
    center = a.operands.center[:, None, :ck]
    k = torch.cat([x.float() for x in mk], 2).transpose(1, 2) - center
    h = k.new_ones(b, n, 1) if ms is None else torch.cat([x.float() for x in ms], 2).transpose(1, 2)
    h = h / -root
    # A token that cannot be read has weight 0, and 0 times what is not finite would be NaN for all queries.
    k, h = (torch.where(x.isfinite(), x, 0.0) for x in (k, h))
    centered = qk.float().transpose(1, 2) - center
    e = torch.ones_like(centered) if qe is None else qe.float().transpose(1, 2)
    eq = e * centered
    of_query = torch.cat([e, eq, (eq * centered).sum(2, keepdim=True)], 2)
    of_token = torch.cat([h * k * k, h * k, h], 2)
    values = torch.cat([v.flatten(1, 2) for v in mv], 2) if len(mv) > 1 else mv[0].flatten(1, 2)  # [B, O * CV, N]
    d_out = d_readout.to(values.dtype).permute(0, 3, 1, 2).flatten(2)  # [B, Q, O * CV]
    d_out_parts = in_parts(d_out)
    form, unit = FORMATS[values.dtype], 1.0 / HALF_SCALE.value if values.dtype == torch.float16 else 1.0
    at_token = torch.empty_like(of_token) if requested.of_tokens else None
    at_query = torch.empty_like(of_query) if requested.of_queries else None
    dv = of_token.new_empty(b, n, values.shape[1]) if requested.mv else None
    rows = max(BLOCK_ROWS, PAIR_BYTES // (4 * b * np) // BLOCK_ROWS * BLOCK_ROWS)
    for first in range(0, q, rows):
        count = min(rows, qp - first)
        w = weights(a, first, count, form, False).parts
        count = min(count, q - first)
        span = slice(first, first + count)
        if dv is not None:
            multiply(w[:, :, :count, :n].transpose(2, 3), d_out[:, span], dv, unit, first > 0)
        if not requested.of_scores:
            continue
        dw = of_token.new_empty(b, count, n)
        multiply(d_out_parts[:, :, span], values, dw)
        d_score = dw.new_empty((b, 3, count, n), dtype=torch.bfloat16)
        usage = None if d_usage is None else d_usage.float().contiguous()
        score_gradients[(count, b)](w, dw, usage, d_score, unit, n, np, w.shape[2], count)
        if at_token is not None:
            multiply(d_score.transpose(2, 3), of_query[:, span], at_token, 1.0, first > 0)
        if at_query is not None:
            multiply(d_score, of_token, at_query[:, span])
    dk = ds = dq = de = None
    if at_token is not None:
        a1, a2, a3 = at_token.split([ck, ck, 1], 2)
        dk = 2 * h * (k * a1 - a2) if requested.mk else None
        ds = ((k * (k * a1 - 2 * a2)).sum(2, keepdim=True) + a3) / -root if requested.ms else None
    if at_query is not None:
        b1, b2, b3 = at_query.split([ck, ck, 1], 2)
        dq = -2 * e * (b2 - centered * b3) if requested.qk else None
        de = b1 - centered * (2 * b2 - centered * b3) if requested.qe else None
    return dk, ds, dv, dq, de


@triton.jit
def _load_weights(
    w: tl.tensor, part: tl.tensor, token: tl.tensor, N: tl.tensor, unit: tl.tensor, PARTS: tl.constexpr
) -> tl.tensor:
    x = tl.load(w + token, mask=token < N, other=0.0).to(tl.float32)
    for i in tl.static_range(1, PARTS):
        x += tl.load(w + i * part + token, mask=token < N, other=0.0).to(tl.float32)
    return x * unit


@triton.jit
def _load_d_weights(
    dw: tl.tensor, d_usage: tl.tensor, b: tl.tensor, token: tl.tensor, N: tl.tensor
) -> tl.tensor:
    x = tl.load(dw + token, mask=token < N, other=0.0)
    if d_usage is not None:
        x += tl.load(d_usage + b * N + token, mask=token < N, other=0.0)
    return x


@triton.jit(do_not_specialize=["N", "count"])
def score_gradients(
    w: tl.tensor, dw: tl.tensor, d_usage: tl.tensor, d_score: tl.tensor, unit: tl.tensor,
    N: tl.tensor, NP: tl.tensor, rows: tl.tensor, count: tl.tensor,
) -> None:  # fmt: skip
    """dS [B, 3, count, N] in three bfloat16 parts, of weights, dW and the gradient of usage.

    w [B, PARTS, rows, NP] is to be multiplied by ``unit``; dw [B, count, N]; d_usage [B, N] or None. Grid [count, B].
    """
    PARTS: tl.constexpr = 2 if w.dtype.element_ty == tl.float16 else 3
    b = tl.program_id(1).to(tl.int64)
    part = rows.to(tl.int64) * NP
    w += b * PARTS * part + tl.program_id(0).to(tl.int64) * NP
    dw += (b * count + tl.program_id(0)) * N
    d_score += (b * 3 * count + tl.program_id(0)) * N
    mean = tl.zeros((_BLOCK,), tl.float32)
    for start in range(0, N, _BLOCK):
        token = start + tl.arange(0, _BLOCK)
        x = _load_d_weights(dw, d_usage, b, token, N)
        mean += _load_weights(w, part, token, N, unit, PARTS) * x
    total = tl.sum(mean, 0)
    for start in range(0, N, _BLOCK):
        token = start + tl.arange(0, _BLOCK)
        x = _load_d_weights(dw, d_usage, b, token, N)
        x = _load_weights(w, part, token, N, unit, PARTS) * (x - total)
        hi, mid, lo = in_three_parts(x)
        tl.store(d_score + token, hi, mask=token < N)
        # b * 0 makes the offset one of 64 bits.
        tl.store(d_score + (b * 0 + count) * N + token, mid, mask=token < N)
        tl.store(d_score + (b * 0 + 2 * count) * N + token, lo, mask=token < N)
