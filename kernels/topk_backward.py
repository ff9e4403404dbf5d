"""Gradients of the top-k read: dense_backward.py's sums over the selected tokens only, by differences.

One kernel per query gives the gradients of query and selection, and of each slot's score. The slots are then sorted by
token (stably, so that a token's slots keep the order of the queries), and one program per token adds up what is its
own: nothing is added atomically, and no order is left to chance.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import bank, configs
from .bank import Queries
from .tiles import bound, load_queries, load_scalars, load_tokens
from .wanted import ALL, Wanted


def memory_read_backward(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    weight: Tensor,
    index: Tensor,
    d_readout: Tensor,
    d_usage: Tensor | None,
    wanted: Wanted = ALL,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As dense_backward's, from the forward's weight and index [B, Q, k]. Three launches, a sort and a search, or those
    of them that what is wanted needs.
    """
    wanted = wanted.given(ms, qe)
    memory, queries = bank.memory(mk, ms), Queries(qk, qe)
    b, ck, q = qk.shape
    _, o, cv, _ = mv[0].shape
    n, k, ckp = memory.tokens, weight.shape[2], bank.padded_channels(ck)
    d_out = d_readout.float().permute(0, 3, 1, 2).contiguous()
    values = bank.joined([v for v in mv if v.shape[3] > 0])
    dq, de = d_out.new_empty((b, q, ck)), d_out.new_empty((b, q, ck))
    slot_d, slot_h = torch.empty_like(weight), torch.empty_like(weight)
    dk, ds = d_out.new_empty((b, n, ck)), d_out.new_empty((b, n, 1))
    memory_arguments = (*memory.keys, *memory.shrinkage, *queries.arguments)
    kinds = (memory.segments, len(memory.ms) > 0, queries.qe is not None)
    if q > 0 and wanted.of_scores:
        kp = configs.power_of_2_from(k)
        query_gradients[(q, b)](
            *memory_arguments, values, *bank.strides(values), weight, index, d_out,
            d_out if d_usage is None else d_usage.float().contiguous(), dq, de, slot_d, slot_h,
            n, q, k, o, cv, 1 / math.sqrt(ck), ck, ckp, *kinds, d_usage is not None, kp, max(16, 4096 // kp),
            num_warps=4 if kp <= 64 else 8,
        )  # fmt: skip
    dq_, de_ = dq if wanted.qk else None, de if wanted.qe else None
    if not (wanted.of_tokens or wanted.mv):
        return None, None, None, dq_, de_
    token, order = index.flatten(1).sort(dim=1, stable=True)
    numbers = torch.arange(n + 1, device=index.device).expand(b, -1).contiguous()
    bounds = torch.searchsorted(token, numbers)
    if wanted.of_tokens:
        key_gradients[(n, b)](
            *memory_arguments, order, bounds, slot_d, slot_h, dk, ds, n, q, k, ck, ckp, *kinds, 16, num_warps=1
        )
    dv = d_out.new_empty((b, n, o * cv)) if wanted.mv else None
    block = min(512, max(16, configs.power_of_2_from(o * cv)))
    if dv is not None and dv.numel() > 0:
        value_gradients[(n, -(-o * cv // block), b)](order, bounds, weight, d_out, dv, n, q, k, o * cv, block, 8)
    return dk if wanted.mk else None, ds if wanted.ms else None, dv, dq_, de_


@triton.jit(do_not_specialize=["N", "Q"])
def query_gradients(
    mk,
    starts,
    ends,
    sb,
    sc,
    sn,
    ms,
    ms_sb,
    ms_sn,
    qk,
    qe,
    q_sb,
    q_sc,
    q_sq,
    e_sb,
    e_sc,
    e_sq,
    mv,
    v_sb,
    v_so,
    v_sc,
    v_sn,
    weight,
    index,
    d_out,
    d_usage,
    dq,
    de,
    slot_d,
    slot_h,
    N,
    Q,
    K,
    O,  # noqa: E741
    CV,
    root,
    CK: tl.constexpr,
    CKP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    HAS_USAGE: tl.constexpr,
    KP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dq, de [B, Q, CK]; per slot [B, Q, K] its share of its token's ds (slot_d), and dL/dD (slot_h). Grid [Q, B].

    d_out [B, Q, O, CV], d_usage [B, N].
    """
    b = tl.program_id(1).to(tl.int64)
    query = tl.program_id(0)
    slot = tl.arange(0, KP)
    row = (b * Q + query) * K + slot
    w = tl.load(weight + row, mask=slot < K, other=0.0)
    token = tl.load(index + row, mask=slot < K, other=-1)
    dw = tl.zeros((KP,), tl.float32)
    for o in range(O):
        for start in range(0, CV, BLOCK_C):
            channel = start + tl.arange(0, BLOCK_C)
            d = tl.load(d_out + ((b * Q + query) * O + o) * CV + channel, mask=channel < CV, other=0.0)
            for i in tl.static_range(SEGMENTS):
                here = (token >= bound(starts, i)) & (token < bound(ends, i))
                at = mv[i] + b * v_sb[i] + (b * 0 + o) * v_so[i] + (token - bound(starts, i))[:, None] * v_sn[i]
                x = tl.load(
                    at + channel[None, :].to(tl.int64) * v_sc[i],
                    mask=here[:, None] & (channel < CV)[None, :],
                    other=0.0,
                )
                dw += tl.sum(x.to(tl.float32) * d[None, :], 1)
    if HAS_USAGE:
        dw += tl.load(d_usage + b * N + token, mask=slot < K, other=0.0)
    d_score = w * (dw - tl.sum(w * dw, 0))
    channel = tl.arange(0, CKP)
    q, e = load_queries(qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq, b, query + tl.arange(0, 1), Q, CK, CKP, HAS_E)
    x = load_tokens(mk, starts, ends, sb, sc, sn, b, token, channel, CK, SEGMENTS).to(tl.float32) - q
    s = tl.full((KP,), 1.0, tl.float32)
    if HAS_S:
        s = load_scalars(ms, starts, ends, ms_sb, ms_sn, b, token, 0, ms_sb, SEGMENTS)
    # A slot of weight 0 has no share, whatever its token's numbers are.
    d_score = tl.where((slot < K) & (w != 0), d_score, 0.0)
    x = tl.where((d_score != 0)[:, None], x, 0.0)
    h = tl.where(d_score != 0, -d_score * s * root, 0.0)
    tl.store(slot_d + row, -d_score * root * tl.sum(e * x * x, 1), mask=slot < K)
    tl.store(slot_h + row, h, mask=slot < K)
    at = (b * Q + query) * CK + channel
    x_h = x * h[:, None]
    e_row = tl.sum(e, 0)
    tl.store(dq + at, -2 * e_row * tl.sum(x_h, 0), mask=channel < CK)
    tl.store(de + at, tl.sum(x_h * x, 0), mask=channel < CK)


@triton.jit(do_not_specialize=["N", "Q"])
def key_gradients(
    mk,
    starts,
    ends,
    sb,
    sc,
    sn,
    ms,
    ms_sb,
    ms_sn,
    qk,
    qe,
    q_sb,
    q_sc,
    q_sq,
    e_sb,
    e_sc,
    e_sq,
    order,
    bounds,
    slot_d,
    slot_h,
    dk,
    ds,
    N,
    Q,
    K,
    CK: tl.constexpr,
    CKP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dk [B, N, CK], ds [B, N, 1]. Grid [N, B].

    order [B, Q * K] are slots sorted by token, bounds [B, N + 1] where each token's begin.
    """
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0)
    channel = tl.arange(0, CKP)
    k = load_tokens(mk, starts, ends, sb, sc, sn, b, (token + tl.arange(0, 1)).to(tl.int64), channel, CK, SEGMENTS).to(
        tl.float32
    )
    d_key = tl.zeros((CKP,), tl.float32)
    d_shrinkage = tl.zeros((BLOCK,), tl.float32)
    first = tl.load(bounds + b * (N + 1) + token)
    last = tl.load(bounds + b * (N + 1) + token + 1)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        slot = tl.load(order + b * Q * K + at, mask=at < last, other=0)
        query = tl.where(at < last, slot // K, Q)
        q, e = load_queries(qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq, b, query, Q, CK, CKP, HAS_E)
        h = tl.load(slot_h + b * Q * K + slot, mask=at < last, other=0.0)
        d_key += 2 * tl.sum(tl.where((h != 0)[:, None], h[:, None] * e * (k - q), 0.0), 0)
        d_shrinkage += tl.load(slot_d + b * Q * K + slot, mask=at < last, other=0.0)
    tl.store(dk + (b * N + token) * CK + channel, d_key, mask=channel < CK)
    tl.store(ds + b * N + token, tl.sum(d_shrinkage, 0))


@triton.jit(do_not_specialize=["N", "Q"])
def value_gradients(order, bounds, weight, d_out, dv, N, Q, K, WIDTH, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr):
    """dv [B, N, WIDTH]: sum over a token's slots of weight * d_out [B, Q, WIDTH]. Grid [N, blocks of WIDTH, B]."""
    b = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    first = tl.load(bounds + b * (N + 1) + token)
    last = tl.load(bounds + b * (N + 1) + token + 1)
    for start in range(first, last, BLOCK):
        at = start + tl.arange(0, BLOCK)
        slot = tl.load(order + b * Q * K + at, mask=at < last, other=0)
        w = tl.load(weight + b * Q * K + slot, mask=at < last, other=0.0)
        x = tl.load(
            d_out + (b * Q + slot // K)[:, None] * WIDTH + channel[None, :],
            mask=(at < last)[:, None] & (channel < WIDTH)[None, :],
            other=0.0,
        )
        total += tl.sum(w[:, None] * x, 0)
    tl.store(dv + (b * N + token) * WIDTH + channel, total, mask=channel < WIDTH)
