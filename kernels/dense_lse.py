"""What dense weights are computed from: operands, and the log-sum-exp of each query's scores.

Scores here are in units of log 2, so that a weight is one exp2. As everywhere (bank.py), each kernel exists twice: for
certified blocks of queries from split operands, for the others by differences, and one of the two leaves at once.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import bank, configs
from .bank import TILE, Bank, Memory, Queries
from .tiles import difference_scores, is_wide, query_operand, split_product

ALIGN = 128  # segments start at multiples of it, so that tiles of weights and values are whole
PROGRAMS = 264  # what fills a large GPU twice; fixed, so that sums are made in the same order everywhere
LOG2E = tl.constexpr(1.4426950408889634)
WIDE_KEYS = 32


class Affinity(NamedTuple):
    """What weights are computed from; ``lse`` [B, splits, QP] are partial log2-sums of exp2."""

    memory: Memory
    queries: Queries
    bank: Bank
    lse: Tensor


def affinity(memory: Memory, queries: Queries) -> Affinity:
    """Operands and log-sum-exp, in four launches. ``memory`` is numbered with ALIGN, or without gaps where only
    the weights are wanted, as in the backward pass.
    """
    operands = bank.prepare(memory, queries, ALIGN)
    b, np = operands.scale.shape
    qp, ckp = operands.offset.shape[1], operands.middle.shape[1]
    config = configs.of("split_lse", queries.qk, ckp)
    block_q, block_n = config["BLOCK_Q"], config["BLOCK_N"]
    tiles = np // ALIGN
    splits = max(1, min(tiles, 64, PROGRAMS // (b * (qp // block_q))))
    lse = operands.scale.new_empty((b, splits, qp))
    split_lse[(qp // block_q, splits, b)](
        *operands.split, lse, np, qp, tiles, splits, ckp, operands.e_exact, TILE, block_q, block_n, ALIGN,
        **configs.launch(config),
    )  # fmt: skip
    wide_lse[(qp // TILE, splits, b)](
        *wide_arguments(memory, queries, operands), lse, np, qp, tiles, splits, *wide_constants(memory, queries),
        TILE, block_q, WIDE_KEYS if ckp <= 64 else WIDE_KEYS // 2, ALIGN, num_warps=8,
    )  # fmt: skip
    return Affinity(memory, queries, operands, lse)


def wide_arguments(memory: Memory, queries: Queries, operands: Bank) -> tuple[object, ...]:
    ck, q = queries.qk.shape[1:]
    return (
        *memory.keys, *memory.shrinkage, *queries.arguments, operands.wide_memory, operands.wide_queries, q, ck**-0.5
    )  # fmt: skip


def wide_constants(memory: Memory, queries: Queries) -> tuple[object, ...]:
    return queries.qk.shape[1], memory.segments, len(memory.ms) > 0, queries.qe is not None


@triton.jit
def _log_sum(score, m, l):  # noqa: E741
    """Takes scores [queries, tokens] into running maxima m and sums l of exp2(score - m)."""
    larger = tl.maximum(m, tl.max(score, 1))
    base = tl.where(larger == -float("inf"), 0.0, larger)
    return larger, l * tl.exp2(m - base) + tl.sum(tl.exp2(score - base[:, None]), 1)


@triton.jit
def split_scores(keys, scale, row, e_hi, q_hi, q_lo, e_lo, add, unscale, CK: tl.constexpr, E_EXACT: tl.constexpr):
    product = split_product(keys, row, e_hi, q_hi, q_lo, e_lo, CK, E_EXACT)
    return (product * unscale + add) * (tl.load(scale + row) * LOG2E)[None, :]


@triton.jit(do_not_specialize=["tiles", "splits"])
def split_lse(
    keys,
    scale,
    queries,
    offset,
    unscale,
    wide_memory,
    wide_queries,
    lse,
    NP,
    QP,
    tiles,
    splits,
    CK: tl.constexpr,
    E_EXACT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """lse [B, splits, QP]: log2 of the sum of exp2(score) over a split. Grid [blocks of queries, splits, B]."""
    b = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if is_wide(wide_memory, wide_queries, b, tl.program_id(0) * BLOCK_Q, QP // TILE, TILE, BLOCK_Q):
        return
    e_hi, q_hi, q_lo, e_lo = query_operand(queries + b * QP * 4 * CK, query, CK, E_EXACT)
    down = tl.load(unscale + b * QP + query)[:, None]
    add = tl.load(offset + b * QP + query)[:, None] * down
    m = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)  # noqa: E741
    first = (part.to(tl.int64) * tiles // splits * ALIGN).to(tl.int32)
    last = ((part + 1).to(tl.int64) * tiles // splits * ALIGN).to(tl.int32)
    for start in range(first, last, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        score = split_scores(
            keys + b * NP * 4 * CK, scale + b * NP, row, e_hi, q_hi, q_lo, e_lo, add, down, CK, E_EXACT
        )
        m, l = _log_sum(score, m, l)  # noqa: E741
    tl.store(lse + (b * splits + part) * QP + query, m + tl.log2(l))


@triton.jit(do_not_specialize=["Q", "tiles", "splits"])
def wide_lse(
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
    wide_memory,
    wide_queries,
    Q,
    root,
    lse,
    NP,
    QP,
    tiles,
    splits,
    CK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """The same by differences, for the blocks of BLOCK_Q that are not certified. Grid [tiles of queries, splits, B]."""
    b = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    query = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if not is_wide(wide_memory, wide_queries, b, tl.program_id(0) * TILE, QP // TILE, TILE, BLOCK_Q):
        return
    m = tl.full((TILE,), -float("inf"), tl.float32)
    l = tl.zeros((TILE,), tl.float32)  # noqa: E741
    first = (part.to(tl.int64) * tiles // splits * ALIGN).to(tl.int32)
    last = ((part + 1).to(tl.int64) * tiles // splits * ALIGN).to(tl.int32)
    for start in range(first, last, BLOCK_N):
        token = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        score = difference_scores(
            mk, starts, ends, sb, sc, sn, ms, ms_sb, ms_sn, qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq,
            b, query, token, Q, root, CK, SEGMENTS, HAS_S, HAS_E
        )  # fmt: skip
        m, l = _log_sum(score * LOG2E, m, l)  # noqa: E741
    tl.store(lse + (b * splits + part) * QP + query, m + tl.log2(l))
