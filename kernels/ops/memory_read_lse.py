"""The first half of a dense read: operands, and the log-sum-exp of each query's scores.

Scores here are in units of log 2, so that a weight is one exp2. As everywhere (split_operands.py), each kernel exists
twice: for certified blocks of queries from split operands, and as the fallback by the direct form.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .. import configs
from ..split_operands import e_is_exact, prepare
from ..structs import TILE, MemoryArgs, QueryArgs, Segments, SplitOperands
from ..tiles import direct_scores, load_query_parts, needs_fallback, split_product

ALIGN = 128  # segments start at multiples of it, so that tiles of weights and values are whole
PROGRAMS = 264  # twice the multiprocessors of an H100; fixed, so that sums are made in the same order everywhere
MOST_SPLITS = 64  # of the memory, in a log-sum-exp
FALLBACK_TOKENS = 32  # of a tile of scores by the direct form

LOG2E = tl.constexpr(1.4426950408889634)  # log2(e)
_TILE = tl.constexpr(TILE)
_ALIGN = tl.constexpr(ALIGN)


class Affinity(NamedTuple):
    """What weights are computed from. lse [B, splits, QP]: log2 of sums of exp2(score), each over a split of N."""

    memory: Segments
    queries: QueryArgs
    operands: SplitOperands
    lse: Tensor


def affinity(memory: Segments, queries: QueryArgs) -> Affinity:
    """Four launches. ``memory`` is aligned to ALIGN, or to 1 where only weights are computed (the backward pass)."""
    operands = prepare(memory, queries, ALIGN)
    np, qp = operands.NP, operands.QP
    b, ck, q = queries.qk.shape
    ckp = operands.keys.shape[3]
    config = configs.of("split_lse", queries.qk, ckp)
    block_q, block_n = config["BLOCK_Q"], config["BLOCK_N"]
    tiles = np // ALIGN
    splits = max(1, min(tiles, MOST_SPLITS, PROGRAMS // (b * (qp // block_q))))
    lse = operands.scale.new_empty((b, splits, qp))
    split_lse[(qp // block_q, splits, b)](
        operands, lse, tiles, splits,
        CK=ckp, E_EXACT=e_is_exact(queries), BLOCK_Q=block_q, BLOCK_N=block_n, **configs.launch(config),
    )  # fmt: skip
    fallback_lse[(qp // TILE, splits, b)](
        memory.args, queries, operands, lse, q, tiles, splits, ck**-0.5,
        CK=ck, BLOCK_Q=block_q, BLOCK_N=FALLBACK_TOKENS if ckp <= 64 else FALLBACK_TOKENS // 2, num_warps=8,
    )  # fmt: skip
    return Affinity(memory, queries, operands, lse)


@triton.jit
def _log_sum(score: tl.tensor, m: tl.tensor, l: tl.tensor) -> tuple[tl.tensor, tl.tensor]:  # noqa: E741
    """Takes scores [queries, tokens] into running maxima m and sums l of exp2(score - m)."""
    larger = tl.maximum(m, tl.max(score, 1))
    base = tl.where(larger == -float("inf"), 0.0, larger)
    return larger, l * tl.exp2(m - base) + tl.sum(tl.exp2(score - base[:, None]), 1)


@triton.jit
def split_bounds(part: tl.tensor, tiles: tl.tensor, parts: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The first number of the ``part``-th of ``parts`` equal shares of ``tiles`` tiles of ALIGN, and the next one's."""
    first = (part.to(tl.int64) * tiles // parts * _ALIGN).to(tl.int32)
    last = ((part + 1).to(tl.int64) * tiles // parts * _ALIGN).to(tl.int32)
    return first, last


@triton.jit
def split_scores(
    operands: SplitOperands, b: tl.tensor, token: tl.tensor, query_parts: tl.tuple,
    offset: tl.tensor, unscale: tl.tensor, CK: tl.constexpr, E_EXACT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores [queries, tokens] in units of log 2. ``offset`` is that of the operands times ``unscale``."""
    product = split_product(operands.keys + b * operands.NP * 4 * CK, token, query_parts, CK, E_EXACT)
    return (product * unscale + offset) * (tl.load(operands.scale + b * operands.NP + token) * LOG2E)[None, :]


@triton.jit(do_not_specialize=["tiles", "splits"])
def split_lse(
    operands: SplitOperands, lse: tl.tensor, tiles: tl.tensor, splits: tl.tensor,
    CK: tl.constexpr, E_EXACT: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """lse [B, splits, QP]: log2 of the sum of exp2(score) over a split. Grid [blocks of queries, splits, B]."""
    b = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if needs_fallback(operands, b, tl.program_id(0) * BLOCK_Q, BLOCK_Q):
        return
    query_parts = load_query_parts(operands.queries + b * operands.QP * 4 * CK, query, CK, E_EXACT)
    unscale = tl.load(operands.unscale + b * operands.QP + query)[:, None]
    offset = tl.load(operands.offset + b * operands.QP + query)[:, None] * unscale
    m = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_Q,), tl.float32)  # noqa: E741
    first, last = split_bounds(part, tiles, splits)
    for start in range(first, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        score = split_scores(operands, b, token, query_parts, offset, unscale, CK, E_EXACT)
        m, l = _log_sum(score, m, l)  # noqa: E741
    tl.store(lse + (b * splits + part) * operands.QP + query, m + tl.log2(l))


@triton.jit(do_not_specialize=["Q", "tiles", "splits"])
def fallback_lse(
    memory: MemoryArgs, queries: QueryArgs, operands: SplitOperands, lse: tl.tensor,
    Q: tl.tensor, tiles: tl.tensor, splits: tl.tensor, root: tl.tensor,
    CK: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """The same by the direct form, for blocks of BLOCK_Q that are not certified. Grid [tiles of queries, splits, B]."""
    b = tl.program_id(2).to(tl.int64)
    part = tl.program_id(1)
    query = tl.program_id(0) * _TILE + tl.arange(0, _TILE)
    if not needs_fallback(operands, b, tl.program_id(0) * _TILE, BLOCK_Q):
        return
    m = tl.full((_TILE,), -float("inf"), tl.float32)
    l = tl.zeros((_TILE,), tl.float32)  # noqa: E741
    first, last = split_bounds(part, tiles, splits)
    for start in range(first, last, BLOCK_N):
        token = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        score = direct_scores(memory, queries, b, query, token, Q, root, CK)
        m, l = _log_sum(score * LOG2E, m, l)  # noqa: E741
    tl.store(lse + (b * splits + part) * operands.QP + query, m + tl.log2(l))
