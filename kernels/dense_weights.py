"""Dense weights (the affinity), a block of queries at a time, from operands and log-sum-exp (dense_lse.py)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .bank import TILE
from .dense_lse import ALIGN, LOG2E, PROGRAMS, WIDE_KEYS, Affinity, split_scores, wide_arguments, wide_constants
from .tiles import difference_scores, is_finite, is_wide, query_operand, token_scale


class Weights(NamedTuple):
    """Weights of a block of queries, [B, parts, rows, NP]; sums over its queries [B, rows / TILE, NP] if asked for, to
    be added up; and sums of weight times shrinkage [B, spans of tokens, rows] if asked for.
    """

    parts: Tensor
    columns: Tensor | None
    shrinkage: Tensor | None


# How weights are stored: as what multiplies values of that dtype on matrix units to float32 accuracy.
FORMATS = {torch.float16: (2, torch.float16), torch.bfloat16: (3, torch.bfloat16), torch.float32: (3, torch.bfloat16)}

# Float16 weights are stored times this, which keeps their low parts above its smallest numbers.
HALF_SCALE = tl.constexpr(16384.0)


def block_rows() -> int:
    """Queries of a block of weights are a multiple of this."""
    return 2 * TILE


def weights(
    a: Affinity, first: int, rows: int, form: tuple[int, torch.dtype], columns: bool, shrinkage: bool = False
) -> Weights:
    """Weights of ``rows`` queries from ``first``, both multiples of :func:`block_rows`, in two launches.

    A query without any finite score gets NaN, and adds nothing to the sums over queries.
    """
    operands = a.bank
    b, np = operands.scale.shape
    qp, ckp = operands.offset.shape[1], operands.middle.shape[1]
    parts, dtype = form
    config = configs.of("split_weights", a.queries.qk, ckp)
    block_q, block_n = config["BLOCK_Q"], config["BLOCK_N"]
    tiles = np // ALIGN
    # Programs of one block on each multiprocessor: as many as run at once, so that queries are loaded once for each.
    span = max(1, min(config["SPAN"], -(-tiles * (rows // block_q) * b * 2 // PROGRAMS)))
    spans = -(-tiles // span)
    out = operands.scale.new_empty((b, parts, rows, np), dtype=dtype)
    sums = operands.scale.new_empty((b, rows // TILE, np)) if columns else None
    ps = operands.scale.new_empty((b, spans, rows)) if shrinkage else None
    constants = (columns, shrinkage, parts, configs.power_of_2_from(a.lse.shape[1]), TILE, block_q)
    outputs = (a.lse, out, out if sums is None else sums, out if ps is None else ps)
    q, splits = a.queries.qk.shape[2], a.lse.shape[1]
    numbers = (q, np, qp, tiles, splits, first, rows, span, a.queries.qk.shape[1] ** 0.5)
    split_weights[(rows // block_q, spans, b)](
        *operands.split, *outputs, *numbers, ckp, operands.e_exact, *constants, block_n, ALIGN, **configs.launch(config)
    )
    wide_weights[(rows // TILE, spans, b)](
        *wide_arguments(a.memory, a.queries, operands), *outputs, *numbers[1:], *wide_constants(a.memory, a.queries),
        *constants, WIDE_KEYS, ALIGN, num_warps=8,
    )  # fmt: skip
    return Weights(out, sums, ps)


@triton.jit
def _whole_lse(lse, b, query, QP, splits, SPLITS: tl.constexpr):
    """[queries]: of the partial sums of all splits."""
    part = tl.arange(0, SPLITS)
    at = lse + (b * splits + part[None, :]) * QP + query[:, None]
    x = tl.load(at, mask=(part < splits)[None, :], other=-float("inf"))
    m = tl.max(x, 1)
    base = tl.where(m == -float("inf"), 0.0, m)
    return m + tl.log2(tl.sum(tl.exp2(x - base[:, None]), 1))


@triton.jit
def _store_weights(out, w, b, row, token, rows, NP, PARTS: tl.constexpr):
    """One tile of weights in PARTS parts: two float16 times HALF_SCALE, or three bfloat16."""
    at = out + (b * PARTS * rows + row.to(tl.int64)[:, None]) * NP + token[None, :]
    part = rows.to(tl.int64) * NP
    if PARTS == 2:
        scaled = w * HALF_SCALE
        hi = scaled.to(tl.float16)
        tl.store(at, hi)
        tl.store(at + part, (scaled - hi.to(tl.float32)).to(tl.float16))
    else:
        hi = w.to(tl.bfloat16)
        rest = w - hi.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        tl.store(at, hi)
        tl.store(at + part, middle)
        tl.store(at + 2 * part, (rest - middle.to(tl.float32)).to(tl.bfloat16))


@triton.jit(do_not_specialize=["Q", "tiles", "splits", "first", "span"])
def split_weights(
    keys,
    scale,
    queries,
    offset,
    unscale,
    wide_memory,
    wide_queries,
    lse,
    out,
    columns,
    shrinkage,
    Q,
    NP,
    QP,
    tiles,
    splits,
    first,
    rows,
    span,
    unroot,
    CK: tl.constexpr,
    E_EXACT: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHRINKAGE: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Weights of a block of queries (:class:`Weights`). Grid [blocks of queries, spans of ``span`` ALIGN tokens, B]."""
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = first + row
    if is_wide(wide_memory, wide_queries, b, first + tl.program_id(0) * BLOCK_Q, QP // TILE, TILE, BLOCK_Q):
        return
    e_hi, q_hi, q_lo, e_lo = query_operand(queries + b * QP * 4 * CK, query, CK, E_EXACT)
    down = tl.load(unscale + b * QP + query)[:, None]
    add = tl.load(offset + b * QP + query)[:, None] * down
    total = _whole_lse(lse, b, query, QP, splits, SPLITS)
    counts = (query < Q) & (total > -float("inf"))
    kept = tl.zeros((BLOCK_Q,), tl.float32)
    last = tl.minimum((tl.program_id(1) + 1) * span, tiles) * ALIGN
    for start in range(tl.program_id(1) * span * ALIGN, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        score = split_scores(
            keys + b * NP * 4 * CK, scale + b * NP, token, e_hi, q_hi, q_lo, e_lo, add, down, CK, E_EXACT
        )
        w = tl.exp2(score - total[:, None])
        _store_weights(out, w, b, row, token, rows, NP, PARTS)
        if COLUMNS:
            column = tl.sum(tl.where(counts[:, None], w, 0.0), 0)
            for i in tl.static_range(BLOCK_Q // TILE):
                at = columns + (b * (rows // TILE) + tl.program_id(0) * (BLOCK_Q // TILE) + i) * NP + token
                tl.store(at, column if i == 0 else tl.zeros_like(column))
        if SHRINKAGE:
            s = tl.load(scale + b * NP + token)
            kept += tl.sum(w * tl.where(s > -float("inf"), -s * unroot, 0.0)[None, :], 1)
    if SHRINKAGE:
        tl.store(shrinkage + (b * tl.num_programs(1) + tl.program_id(1)) * rows + row, kept)


@triton.jit(do_not_specialize=["Q", "tiles", "splits", "first", "span"])
def wide_weights(
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
    out,
    columns,
    shrinkage,
    NP,
    QP,
    tiles,
    splits,
    first,
    rows,
    span,
    unroot,
    CK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHRINKAGE: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """The same by differences, for the blocks of BLOCK_Q that are not certified. Grid [tiles of queries, spans, B]."""
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    query = first + row
    if not is_wide(wide_memory, wide_queries, b, first + tl.program_id(0) * TILE, QP // TILE, TILE, BLOCK_Q):
        return
    total = _whole_lse(lse, b, query, QP, splits, SPLITS)
    counts = (query < Q) & (total > -float("inf"))
    kept = tl.zeros((TILE,), tl.float32)
    last = tl.minimum((tl.program_id(1) + 1) * span, tiles) * ALIGN
    for start in range(tl.program_id(1) * span * ALIGN, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        score = difference_scores(
            mk, starts, ends, sb, sc, sn, ms, ms_sb, ms_sn, qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq,
            b, query, token.to(tl.int64), Q, root, CK, SEGMENTS, HAS_S, HAS_E
        )  # fmt: skip
        w = tl.exp2(score * LOG2E - total[:, None])
        _store_weights(out, w, b, row, token, rows, NP, PARTS)
        if COLUMNS:
            column = tl.sum(tl.where(counts[:, None], w, 0.0), 0)
            tl.store(columns + (b * (rows // TILE) + tl.program_id(0)) * NP + token, column)
        if SHRINKAGE:
            s = token_scale(ms, starts, ends, ms_sb, ms_sn, b, token.to(tl.int64), root, HAS_S, SEGMENTS)
            kept += tl.sum(w * tl.where(is_finite(s), -s * unroot, 0.0)[None, :], 1)
    if SHRINKAGE:
        tl.store(shrinkage + (b * tl.num_programs(1) + tl.program_id(1)) * rows + row, kept)
