"""The second half of a dense read: weights (the affinity), a block of queries at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import configs
from ..split_operands import e_is_exact
from ..structs import TILE, MemoryArgs, Pointer, QueryArgs, SplitOperands
from ..tiles import direct_scores, in_three_parts, is_finite, load_query_parts, needs_fallback, token_scale
from .memory_read_lse import ALIGN, FALLBACK_TOKENS, LOG2E, PROGRAMS, Affinity, split_scores

# How weights are stored: as what multiplies values of that dtype on matrix units to float32 accuracy.
FORMATS = {torch.float16: (2, torch.float16), torch.bfloat16: (3, torch.bfloat16), torch.float32: (3, torch.bfloat16)}

# Float16 weights are stored times 2^14: within float16, and with low parts above its smallest numbers.
HALF_SCALE = tl.constexpr(16384.0)

BLOCK_ROWS = 2 * TILE  # queries of a block of weights are a multiple of this

_TILE = tl.constexpr(TILE)
_ALIGN = tl.constexpr(ALIGN)
_FALLBACK_TOKENS = tl.constexpr(FALLBACK_TOKENS)


class Weights(NamedTuple):
    """Weights of a block of queries, and partial sums of them where they are asked for."""

    parts: Pointer  # [B, PARTS, rows, NP]
    columns: Pointer | None  # [B, rows / TILE, NP]: sums over tiles of queries
    shrinkage: Pointer | None  # [B, spans of tokens, rows]: sums of weight times shrinkage


def weights(
    a: Affinity, first: int, rows: int, form: tuple[int, torch.dtype], columns: bool, shrinkage: bool = False
) -> Weights:
    """Weights of ``rows`` queries from ``first``, both multiples of BLOCK_ROWS, in two launches.

    A query without any finite score gets NaN, and adds nothing to the sums over queries.
    """
    operands, (b, ck, q) = a.operands, a.queries.qk.shape
    np, ckp, splits = operands.NP, operands.keys.shape[3], a.lse.shape[1]
    parts, dtype = form
    config = configs.of("split_weights", a.queries.qk, ckp)
    block_q, block_n = config["BLOCK_Q"], config["BLOCK_N"]
    tiles = np // ALIGN
    # Programs of one block on each multiprocessor: as many as run at once, so that queries are loaded once for each.
    span = max(1, min(config["SPAN"], -(-tiles * (rows // block_q) * b * 2 // PROGRAMS)))
    spans = -(-tiles // span)
    new = operands.scale.new_empty
    out = Weights(
        new((b, parts, rows, np), dtype=dtype),
        new((b, rows // TILE, np)) if columns else None,
        new((b, spans, rows)) if shrinkage else None,
    )
    numbers = (q, tiles, splits, first, rows, span)
    sizes = {"SPLITS": configs.power_of_2_from(splits), "BLOCK_Q": block_q}
    split_weights[(rows // block_q, spans, b)](
        operands, a.lse, out, *numbers, ck**0.5, CK=ckp, E_EXACT=e_is_exact(a.queries), BLOCK_N=block_n, **sizes,
        **configs.launch(config),
    )  # fmt: skip
    fallback_weights[(rows // TILE, spans, b)](
        a.memory.args, a.queries, operands, a.lse, out, *numbers, ck**-0.5, ck**0.5, CK=ck, **sizes, num_warps=8
    )
    return out


@triton.jit
def _whole_lse(
    lse: tl.tensor, b: tl.tensor, query: tl.tensor, QP: tl.tensor, splits: tl.tensor, SPLITS: tl.constexpr
) -> tl.tensor:
    """[queries]: of the partial sums of all splits."""
    part = tl.arange(0, SPLITS)
    at = lse + (b * splits + part[None, :]) * QP + query[:, None]
    x = tl.load(at, mask=(part < splits)[None, :], other=-float("inf"))
    m = tl.max(x, 1)
    base = tl.where(m == -float("inf"), 0.0, m)
    return m + tl.log2(tl.sum(tl.exp2(x - base[:, None]), 1))


@triton.jit
def _store_weights(
    parts: tl.tensor, w: tl.tensor, b: tl.tensor, row: tl.tensor, token: tl.tensor, rows: tl.tensor, NP: tl.tensor
) -> None:
    """One tile of weights in the parts of :data:`FORMATS`: two float16 times HALF_SCALE, or three bfloat16."""
    PARTS: tl.constexpr = 2 if parts.dtype.element_ty == tl.float16 else 3
    at = parts + (b * PARTS * rows + row.to(tl.int64)[:, None]) * NP + token[None, :]
    part = rows.to(tl.int64) * NP
    if PARTS == 2:
        scaled = w * HALF_SCALE
        hi = scaled.to(tl.float16)
        tl.store(at, hi)
        tl.store(at + part, (scaled - hi.to(tl.float32)).to(tl.float16))
    else:
        hi, mid, lo = in_three_parts(w)
        tl.store(at, hi)
        tl.store(at + part, mid)
        tl.store(at + 2 * part, lo)


@triton.jit(do_not_specialize=["Q", "tiles", "splits", "first", "span"])
def split_weights(
    operands: SplitOperands, lse: tl.tensor, out: Weights,
    Q: tl.tensor, tiles: tl.tensor, splits: tl.tensor, first: tl.tensor, rows: tl.tensor, span: tl.tensor,
    unroot: tl.tensor, CK: tl.constexpr, E_EXACT: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """Fills ``out``; ``unroot`` is sqrt(CK). Grid [blocks of queries, spans of ``span`` ALIGN tokens, B]."""
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query = first + row
    if needs_fallback(operands, b, first + tl.program_id(0) * BLOCK_Q, BLOCK_Q):
        return
    query_parts = load_query_parts(operands.queries + b * operands.QP * 4 * CK, query, CK, E_EXACT)
    unscale = tl.load(operands.unscale + b * operands.QP + query)[:, None]
    offset = tl.load(operands.offset + b * operands.QP + query)[:, None] * unscale
    total = _whole_lse(lse, b, query, operands.QP, splits, SPLITS)
    counts = (query < Q) & (total > -float("inf"))
    kept = tl.zeros((BLOCK_Q,), tl.float32)
    last = tl.minimum((tl.program_id(1) + 1) * span, tiles) * _ALIGN
    for start in range(tl.program_id(1) * span * _ALIGN, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        score = split_scores(operands, b, token, query_parts, offset, unscale, CK, E_EXACT)
        w = tl.exp2(score - total[:, None])
        _store_weights(out.parts, w, b, row, token, rows, operands.NP)
        if out.columns is not None:
            column = tl.sum(tl.where(counts[:, None], w, 0.0), 0)
            for i in tl.static_range(BLOCK_Q // _TILE):
                tile = b * (rows // _TILE) + tl.program_id(0) * (BLOCK_Q // _TILE) + i
                at = out.columns + tile * operands.NP + token
                tl.store(at, column if i == 0 else tl.zeros_like(column))
        if out.shrinkage is not None:
            s = tl.load(operands.scale + b * operands.NP + token)
            kept += tl.sum(w * tl.where(s > -float("inf"), -s * unroot, 0.0)[None, :], 1)
    if out.shrinkage is not None:
        tl.store(out.shrinkage + (b * tl.num_programs(1) + tl.program_id(1)) * rows + row, kept)


@triton.jit(do_not_specialize=["Q", "tiles", "splits", "first", "span"])
def fallback_weights(
    memory: MemoryArgs, queries: QueryArgs, operands: SplitOperands, lse: tl.tensor, out: Weights,
    Q: tl.tensor, tiles: tl.tensor, splits: tl.tensor, first: tl.tensor, rows: tl.tensor, span: tl.tensor,
    root: tl.tensor, unroot: tl.tensor, CK: tl.constexpr, SPLITS: tl.constexpr, BLOCK_Q: tl.constexpr,
) -> None:  # fmt: skip
    """The same by the direct form, for blocks of BLOCK_Q that are not certified. Grid [tiles of queries, spans, B]."""
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * _TILE + tl.arange(0, _TILE)
    query = first + row
    if not needs_fallback(operands, b, first + tl.program_id(0) * _TILE, BLOCK_Q):
        return
    total = _whole_lse(lse, b, query, operands.QP, splits, SPLITS)
    counts = (query < Q) & (total > -float("inf"))
    kept = tl.zeros((_TILE,), tl.float32)
    last = tl.minimum((tl.program_id(1) + 1) * span, tiles) * _ALIGN
    for start in range(tl.program_id(1) * span * _ALIGN, last, _FALLBACK_TOKENS):
        token = start + tl.arange(0, _FALLBACK_TOKENS)
        score = direct_scores(memory, queries, b, query, token.to(tl.int64), Q, root, CK)
        w = tl.exp2(score * LOG2E - total[:, None])
        _store_weights(out.parts, w, b, row, token, rows, operands.NP)
        if out.columns is not None:
            column = tl.sum(tl.where(counts[:, None], w, 0.0), 0)
            tl.store(out.columns + (b * (rows // _TILE) + tl.program_id(0)) * operands.NP + token, column)
        if out.shrinkage is not None:
            s = token_scale(memory, b, token.to(tl.int64), root)
            kept += tl.sum(w * tl.where(is_finite(s), -s * unroot, 0.0)[None, :], 1)
    if out.shrinkage is not None:
        tl.store(out.shrinkage + (b * tl.num_programs(1) + tl.program_id(1)) * rows + row, kept)
