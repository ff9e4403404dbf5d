"""affinity_topk: the exact k best tokens of each query and their softmax weights, in a few launches.

Two to prepare operands (bank.py), two for group maxima, one for the choice of groups (topk_groups.py), one here; two
more where usage is wanted. Where k groups would hold the whole memory, the one here does it all.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import bank, configs, topk_usage
from .bank import Memory, Queries
from .tiles import bound, load_queries, load_scalars, origin, readable
from .topk_groups import GROUP, best_of, candidate_groups, group_maxima, order_key
from .topk_usage import add_usage

MAXIMA_BYTES = 128 << 20  # of group maxima at a time; beyond, queries go in turns
TURN = 128  # queries of a turn are a multiple of this


def affinity_topk(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    qk: Tensor,
    qe: Tensor | None,
    top_k: int,
    return_usage: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k] float32, descending, index [B, Q, k] int64, k = min(top_k, N); usage [B, N] or None."""
    memory = bank.memory(mk, ms)
    by_groups = memory.tokens > min(top_k, memory.tokens) * GROUP
    return choose(memory, Queries(qk, qe), top_k, return_usage, by_groups)


def choose(
    memory: Memory, queries: Queries, top_k: int, return_usage: bool, by_groups: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same of a memory as the kernels take it, which ``by_groups`` says to have more than k * GROUP tokens."""
    qk = queries.qk
    b, _, q = qk.shape
    k = min(top_k, memory.tokens)
    weight = qk.new_empty((b, q, k), dtype=torch.float32)
    index = qk.new_empty((b, q, k), dtype=torch.int64)
    sums = topk_usage.new_sums(qk, b, memory.tokens) if return_usage else None
    if weight.numel() > 0:
        if by_groups:
            _choose_by_groups(memory, queries, weight, index, sums)
        else:
            _choose(memory, queries, None, 0, q, weight, index, sums)
    return weight, index, None if sums is None else topk_usage.finish(sums, topk_usage.usage_bits(q))


def _choose_by_groups(memory: Memory, queries: Queries, weight: Tensor, index: Tensor, sums: Tensor | None) -> None:
    b, q, k = weight.shape
    config = configs.of("split_maxima", queries.qk, queries.qk.shape[1])
    operands = bank.prepare(memory, queries, config["BLOCK_N"] * GROUP)
    room = MAXIMA_BYTES // (4 * b * (operands.keys.shape[1] // GROUP))
    turns = -(-q // max(TURN, room // TURN * TURN))
    turn = -(-q // (turns * TURN)) * TURN
    for first in range(0, q, turn):
        count = min(turn, q - first)
        maxima = group_maxima(operands, memory, queries, first, count, config)
        groups = candidate_groups(maxima, k, memory.ends[-1])
        del maxima  # before those of the next turn are made
        _choose(memory, queries, groups, first, count, weight, index, sums)


def _choose(
    memory: Memory,
    queries: Queries,
    groups: Tensor | None,
    first: int,
    count: int,
    weight: Tensor,
    index: Tensor,
    sums: Tensor | None,
) -> None:
    b, q, k = weight.shape
    ck = queries.qk.shape[1]
    candidates = memory.tokens if groups is None else k * GROUP
    width = configs.power_of_2_from(candidates)
    rows = min(64, width)
    weigh_candidates[(count, b)](
        *memory.keys,
        *memory.shrinkage,
        *queries.arguments,
        index if groups is None else groups,
        weight,
        index,
        weight if sums is None else sums,
        memory.tokens,
        q,
        first,
        count,
        candidates,
        1 / math.sqrt(ck),
        2.0 ** topk_usage.usage_bits(q),
        ck,
        bank.padded_channels(ck),
        memory.segments,
        len(memory.ms) > 0,
        queries.qe is not None,
        groups is not None,
        sums is not None,
        GROUP,
        k,
        configs.power_of_2_from(k),
        rows,
        width // rows,
        min(16, configs.power_of_2_from(k)),
        num_warps=2 if width < 2048 else 8,
        maxnreg=200,  # said, since ptxas otherwise aims lower and leaves a few bytes on the stack
    )


@triton.jit
def _gather_tokens(ptrs, starts, ends, sb, sc, sn, b, token, channel, CHANNELS, SEGMENTS: tl.constexpr):
    """As ``tiles.load_tokens``; what one segment leaves out is what was read of the others, without selecting it."""
    rows = tl.zeros((token.shape[0], channel.shape[0]), ptrs[0].dtype.element_ty)
    for i in tl.static_range(SEGMENTS):
        here = (token >= bound(starts, i)) & (token < bound(ends, i))
        offset = (token - origin(starts, i))[:, None] * sn[i] + channel[None, :].to(tl.int64) * sc[i]
        mask = here[:, None] & (channel < CHANNELS)[None, :]
        rows = tl.load(ptrs[i] + b.to(tl.int64) * sb[i] + offset, mask=mask, other=rows)
    return rows


@triton.jit(do_not_specialize=["N", "Q", "first", "count", "candidates"])
def weigh_candidates(
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
    groups,
    weight,
    index,
    sums,
    N,
    Q,
    first,
    count,
    candidates,
    root,
    unit,
    CK: tl.constexpr,
    CKP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    HAS_GROUPS: tl.constexpr,
    HAS_USAGE: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    ROWS: tl.constexpr,
    STEPS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """weight, index [B, Q, K]: of a query's candidates the K best, best first, and the softmax of their scores.

    Candidates are the tokens of groups [B, count, candidates / GROUP], ascending, or all tokens. They are scored by the
    differences of Eq. 2, which cancel nothing, ROWS at a time. Rows of ``sums`` are N long. Grid [count, B].
    """
    b = tl.program_id(1)
    query = first + tl.program_id(0)
    row = b.to(tl.int64) * count + tl.program_id(0)
    channel = tl.arange(0, CKP)
    q, e = load_queries(qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq, b, query + tl.arange(0, 1), Q, CK, CKP, HAS_E)
    tokens = bound(ends, SEGMENTS - 1)
    score = tl.full((STEPS, ROWS), -float("inf"), tl.float32)
    step = tl.arange(0, STEPS)[:, None]
    for i in range(STEPS):
        at = i * ROWS + tl.arange(0, ROWS)
        token = at.to(tl.int64)
        if HAS_GROUPS:
            group = tl.load(groups + row * (candidates // GROUP) + at // GROUP, mask=at < candidates, other=0)
            token = group.to(tl.int64) * GROUP + at % GROUP
        token = tl.where(at < candidates, token, tokens)
        x = _gather_tokens(mk, starts, ends, sb, sc, sn, b, token, channel, CK, SEGMENTS).to(tl.float32) - q
        s = tl.full((ROWS,), 1.0, tl.float32)
        if HAS_S:
            s = load_scalars(ms, starts, ends, ms_sb, ms_sn, b, token, 0, ms_sb, SEGMENTS)
        new = tl.where(token < tokens, readable(-s * (tl.sum(e * x * x, 1) * root)), -float("inf"))
        score = tl.where(step == i, new[None, :], score)
    # The K best, in ascending order of their place; of equal scores the first are wanted.
    score = tl.reshape(score, (STEPS * ROWS,))
    chosen, place = best_of(order_key(score), K)
    weight += (b.to(tl.int64) * Q + query) * K
    index += (b.to(tl.int64) * Q + query) * K
    tl.store(weight + place, score, mask=chosen)
    tl.store(index + place, tl.arange(0, STEPS * ROWS).to(tl.int64), mask=chosen)
    tl.debug_barrier()
    slot = tl.arange(0, KP)
    value = tl.load(weight + slot, mask=slot < K, other=-float("inf"))
    at = tl.load(index + slot, mask=slot < K, other=0)
    # Best first: each counts those before it.
    rank = tl.zeros((KP,), tl.int32)
    for first_other in range(0, KP, OTHERS):
        other = first_other + tl.arange(0, OTHERS)
        x = tl.load(weight + other, mask=other < K, other=-float("inf"))[None, :]
        before = (x > value[:, None]) | ((x == value[:, None]) & (other[None, :] < slot[:, None]))
        rank += tl.sum(before.to(tl.int32), 1)
    tl.debug_barrier()  # what was read here is written below
    # A slot left over repeats the best token with weight 0.
    at = tl.where(value == -float("inf"), tl.max(tl.where(rank == 0, at, 0), 0), at)
    w = tl.exp(value - tl.max(value, 0))
    w = tl.where(slot < K, w, 0.0)
    w = w / tl.sum(w, 0)
    token = at
    if HAS_GROUPS:
        group = tl.load(groups + row * (candidates // GROUP) + at // GROUP, mask=slot < K, other=0)
        token = group.to(tl.int64) * GROUP + at % GROUP
    tl.store(weight + rank, w, mask=slot < K)
    tl.store(index + rank, token, mask=slot < K)
    if HAS_USAGE:
        add_usage(sums + b.to(tl.int64) * 3 * N, token, w, N, unit, slot < K)
