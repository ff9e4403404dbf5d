"""The tokens that can be among the k best: those of the k groups with the largest maxima.

Tokens are grouped by GROUP consecutive ones. One pass over the memory computes every score and keeps each group's
largest alone. **Of the k groups with the largest maxima (of equal ones those that come first), the tokens hold the k
largest scores (of equal ones those that come first).** For a token outside these groups is no better than its group's
maximum, which is no better than those k maxima, each of them another token; and where it equals one of them, that one's
group comes first, so the token does, too. This holds level by level when groups are grouped again.

The k * GROUP tokens are then scored anew by differences (topk_affinity.py), so what this pass decides is only which
groups are looked at, by the expanded form at float32 level (bank.py): the choice that the other backends make, too.
The work does not depend on the data, and nothing overflows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .bank import TILE, Bank, Memory, Queries
from .tiles import bound, difference_scores, is_wide, number, query_operand, split_product

GROUP = 16
WIDE_KEYS = 16  # groups of a program that scores by differences
WIDE_PROGRAMS = 2048
WIDEST = 8192  # groups that one program selects from; above, groups of groups


def group_maxima(
    bank: Bank, memory: Memory, queries: Queries, first: int, count: int, config: dict[str, int]
) -> Tensor:
    """Largest score of each group, [B, count, NP / GROUP], for ``count`` queries from ``first``, a multiple of a tile.

    Of groups behind the last token nothing is written. Two launches, of which each tile of queries takes one.
    """
    b, ck, q = queries.qk.shape
    np, qp = bank.keys.shape[1], bank.queries.shape[1]
    ckp = bank.keys.shape[3]
    out = bank.keys.new_empty((b, count, np // GROUP), dtype=torch.float32)
    block_q, block_n = config["BLOCK_Q"], config["BLOCK_N"]
    grid = (-(-count // block_q), np // (block_n * GROUP), b)
    split_maxima[grid](
        *bank.split,
        memory.ends[-1],
        out,
        np,
        qp,
        first,
        count,
        ckp,
        bank.e_exact,
        GROUP,
        TILE,
        block_q,
        block_n,
        **configs.launch(config),
    )
    tiles, chunks = -(-count // TILE), np // (WIDE_KEYS * GROUP)
    # Few, since most leave at once.
    wide_maxima[(tiles, min(chunks, max(1, WIDE_PROGRAMS // (tiles * b))), b)](
        *memory.keys,
        *memory.shrinkage,
        *queries.arguments,
        bank.wide_memory,
        bank.wide_queries,
        out,
        q,
        np,
        qp,
        first,
        count,
        ck**-0.5,
        ck,
        memory.segments,
        len(memory.ms) > 0,
        queries.qe is not None,
        GROUP,
        TILE,
        block_q,
        WIDE_KEYS,
        num_warps=8,
    )
    return out


@triton.jit
def _store_maxima(out, best, b, row, group, count, groups):
    """best [queries, BLOCK_N] becomes part of out [B, count, groups]."""
    at = out + (b * count + row)[:, None] * groups + group[None, :]
    tl.store(at, best, mask=(row < count)[:, None])


@triton.jit(do_not_specialize=["first", "count"])
def split_maxima(
    keys,
    scale,
    queries,
    offset,
    unscale,
    wide_memory,
    wide_queries,
    end,
    out,
    NP,
    QP,
    first,
    count,
    CK: tl.constexpr,
    E_EXACT: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out [B, count, NP / GROUP]: largest score of each group of tokens, for certified tiles of queries.

    Grid [tiles of BLOCK_Q queries, chunks of BLOCK_N groups, B]. Step t of a program scores the t-th token of each of
    its groups, so that the maximum over a group is one of whole tiles. ``end`` is the number behind the last token.
    """
    b = tl.program_id(2).to(tl.int64)
    first_tile = first // BLOCK_Q + tl.program_id(0)
    wide = is_wide(wide_memory, wide_queries, b, first_tile * BLOCK_Q, QP // TILE, TILE, BLOCK_Q)
    if wide | (tl.program_id(1) * (BLOCK_N * GROUP) >= number(end)):
        return
    query = first_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    e_hi, q_hi, q_lo, e_lo = query_operand(queries + b * QP * 4 * CK, query, CK, E_EXACT)
    add = tl.load(offset + b * QP + query)[:, None]
    group = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    best = tl.full((BLOCK_Q, BLOCK_N), -float("inf"), tl.float32)
    for t in range(GROUP):
        token = group * GROUP + t
        product = split_product(keys + b * NP * 4 * CK, token, e_hi, q_hi, q_lo, e_lo, CK, E_EXACT)
        best = tl.maximum(best, (product + add) * tl.load(scale + b * NP + token)[None, :])
    best = best * tl.load(unscale + b * QP + query)[:, None]
    _store_maxima(out, best, b, query - first, group, count, NP // GROUP)


@triton.jit(do_not_specialize=["Q", "first", "count"])
def wide_maxima(
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
    out,
    Q,
    NP,
    QP,
    first,
    count,
    root,
    CK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The same by differences, for the blocks of BLOCK_Q that are not certified.

    Grid [tiles of TILE queries, programs that share the chunks of BLOCK_N groups, B]."""
    b = tl.program_id(2).to(tl.int64)
    tile = first // TILE + tl.program_id(0)
    if not is_wide(wide_memory, wide_queries, b, tile * TILE, QP // TILE, TILE, BLOCK_Q):
        return
    query = tile * TILE + tl.arange(0, TILE)
    chunks = tl.cdiv(bound(ends, SEGMENTS - 1), BLOCK_N * GROUP).to(tl.int32)
    for chunk in range(tl.program_id(1), chunks, tl.num_programs(1)):
        group = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        best = tl.full((TILE, BLOCK_N), -float("inf"), tl.float32)
        for t in range(GROUP):
            token = group.to(tl.int64) * GROUP + t
            score = difference_scores(
                mk, starts, ends, sb, sc, sn, ms, ms_sb, ms_sn, qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq,
                b, query, token, Q, root, CK, SEGMENTS, HAS_S, HAS_E
            )  # fmt: skip
            best = tl.maximum(best, score)
        _store_maxima(out, best, b, query - first, group, count, NP // GROUP)


def candidate_groups(maxima: Tensor, k: int, end: int | Tensor) -> Tensor:
    """The k groups with the largest of maxima [B, count, groups] -> [B, count, k] int32, ascending.

    end: behind the last token, as in ``Memory.ends``; what the maxima of later groups are does not matter. 4 divides
    the number of groups. One launch; two more for each factor of GROUP by which there are more than WIDEST groups, too
    many for a program.
    """
    levels = [maxima]
    while levels[-1].shape[2] > WIDEST:
        levels.append(_coarser(levels[-1], end, GROUP ** len(levels)))
    chosen = None
    for i, level in reversed(list(enumerate(levels))):
        b, count, groups = level.shape
        if chosen is None and groups <= k:
            continue
        candidates = groups if chosen is None else min(k, chosen.shape[2]) * GROUP
        parents = level if chosen is None else chosen
        out = level.new_empty((b, count, min(k, groups)), dtype=torch.int32)
        coarse = 0
        if chosen is None and groups > out.shape[2] * GROUP:
            coarse, candidates = configs.power_of_2_from(-(-groups // GROUP)), out.shape[2] * GROUP
        width = configs.power_of_2_from(candidates)
        select_groups[(count, b)](
            level,
            parents,
            out,
            end,
            GROUP ** (i + 1),
            groups,
            candidates,
            out.shape[2],
            count,
            chosen is not None,
            GROUP,
            width,
            coarse,
            num_warps=max(1, width // 1024, coarse * GROUP // 2048),
        )
        chosen = out
    assert chosen is not None
    return chosen


def _coarser(maxima: Tensor, end: int | Tensor, span: int) -> Tensor:
    b, count, groups = maxima.shape
    out = maxima.new_empty((b, count, -(-groups // (4 * GROUP)) * 4))
    rows = b * count
    coarser_maxima[(rows, -(-out.shape[2] // 128))](maxima, out, end, span, groups, out.shape[2], GROUP, 128)
    return out


@triton.jit(do_not_specialize=["GROUPS", "COARSE"])
def coarser_maxima(maxima, out, end, span, GROUPS, COARSE, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Maxima of GROUP consecutive groups of ``span`` tokens: [rows, GROUPS] -> [rows, COARSE].

    Grid [rows, blocks of COARSE]."""
    row = tl.program_id(0).to(tl.int64)
    coarse = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    group = coarse[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    exists = group.to(tl.int64) * span < number(end)
    x = tl.load(maxima + row * GROUPS + group, mask=exists, other=-float("inf"))
    tl.store(out + row * COARSE + coarse, tl.max(x, 1), mask=coarse < COARSE)


@triton.jit
def order_key(x):
    """int32 in the order of float32, the zeros equal, above the smallest int32."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def best_of(key, K):
    """Of int32 keys [W] the K largest, of equal ones the first -> whether each is one, and its place among them.

    The K-th largest is found by bisection over its bits, so that the work does not depend on the data. K <= W < 2^15.
    """
    kth = tl.where(tl.sum((key >= 0).to(tl.int32), 0) >= K, 0, -2147483648)
    for bit in range(31):
        higher = kth + (1 << (30 - bit))
        kth = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= K, higher, kth)
    above = key > kth
    equal = key == kth
    room = K - tl.sum(above.to(tl.int32), 0)
    # Two counts in one: scans are the dearest step here.
    before = tl.cumsum(tl.where(above, 1, tl.where(equal, 65536, 0)), 0)
    equals = before >> 16
    return above | (equal & (equals <= room)), (before & 0xFFFF) + tl.minimum(equals, room) - 1


@triton.jit(do_not_specialize=["GROUPS", "candidates", "K", "count"])
def select_groups(
    maxima,
    parents,
    out,
    end,
    span,
    GROUPS,
    candidates,
    K,
    count,
    HAS_PARENTS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    COARSE: tl.constexpr,
):
    """out [B, count, K] int32: of ``candidates`` groups the K largest, of equal ones the first, in ascending order.

    Groups are of ``span`` tokens. Candidates are all GROUPS of them, or those of ``parents`` [B, count, candidates /
    GROUP] groups of groups; where COARSE is not 0, it is the number of groups of groups, at most, from which this
    chooses parents itself. Grid [count, B].
    """
    row = tl.program_id(1).to(tl.int64) * count + tl.program_id(0)
    there = GROUPS // 4 * 4  # GROUPS, said so that loads are wide
    maxima += row * there
    to = out + row * K
    # Nothing is written behind the last token; what would be read there comes last.
    existing = tl.minimum((number(end) + span - 1) // span, GROUPS).to(tl.int32)
    group = tl.arange(0, WIDTH)
    wanted = group < candidates
    if COARSE > 0:
        coarse = tl.arange(0, COARSE)
        all_groups = coarse[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(maxima + all_groups, mask=all_groups < there, other=0.0)
        x = tl.max(tl.where(all_groups < existing, x, -float("inf")), 1)
        chosen, place = best_of(order_key(x), K)
        tl.store(to + place, coarse, mask=chosen)
        parents = to
        tl.debug_barrier()
    elif HAS_PARENTS:
        parents += row * (candidates // GROUP)
    if HAS_PARENTS | (COARSE > 0):
        parent = tl.arange(0, WIDTH // GROUP)
        parent = tl.load(parents + parent, mask=parent < candidates // GROUP, other=0)
        children = parent[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.reshape(tl.load(maxima + children, mask=children < there, other=0.0), (WIDTH,))
        group = tl.reshape(children, (WIDTH,))
        tl.debug_barrier()  # places of parents read here may be written below
    else:
        x = tl.load(maxima + group, mask=group < there, other=0.0)
    x = tl.where(wanted & (group < existing), x, -float("inf"))
    chosen, place = best_of(order_key(x), K)
    tl.store(to + place, group, mask=chosen)
