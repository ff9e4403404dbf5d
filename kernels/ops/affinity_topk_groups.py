"""Groups that hold the k best tokens: those with the k largest maxima.

GROUP consecutive tokens are a group. One pass over the memory computes every score and keeps each group's largest.

Claim. Take the k groups with the largest maxima, the first of equal ones. Their tokens hold the k largest scores, the
first of equal ones.

Proof. Let t lie outside the chosen groups. Its score is at most its group's maximum, hence at most each of the k chosen
maxima. Those belong to k distinct tokens. On a tie the chosen group comes first, so its token has the lower index.

The claim holds level by level when groups are grouped again.

The k * GROUP tokens are then rescored with the direct form of Eq. 2 (affinity_topk.py). This pass decides only which
groups are looked at, by the expanded form to float32 accuracy (split_operands.py), as the other backends choose, too.
The work does not depend on the data, and nothing overflows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import configs
from ..structs import TILE, MemoryArgs, Place, QueryArgs, Segments, SplitOperands
from ..split_operands import e_is_exact
from ..tiles import direct_scores, end_of, load_query_parts, needs_fallback, number, split_product

GROUP = 16
FALLBACK_GROUPS = 16  # of a tile of scores by the direct form
FALLBACK_PROGRAMS = 2048
WIDEST = 8192  # groups that one program selects from; of more, groups are grouped again
QUAD = 4  # divides the number of groups, so that loads are wide
BLOCK = 128  # groups of a program that groups them again

_TILE = tl.constexpr(TILE)
_GROUP = tl.constexpr(GROUP)
_FALLBACK_GROUPS = tl.constexpr(FALLBACK_GROUPS)
_QUAD = tl.constexpr(QUAD)
_BLOCK = tl.constexpr(BLOCK)
_LEAST_INT32 = tl.constexpr(-(2**31))
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits of an int32 but its sign
_SECOND_COUNT = tl.constexpr(65536)  # two counts below 2^16 in one int32


def group_maxima(
    operands: SplitOperands, memory: Segments, queries: QueryArgs, first: int, count: int, config: dict[str, int]
) -> Tensor:
    """Largest score of each group, [B, count, NP / GROUP], for ``count`` queries from ``first``, a multiple of TILE.

    Of groups behind the last token nothing is written. Two launches, of which each tile of queries takes one.
    """
    b, ck, q = queries.qk.shape
    np, ckp = operands.NP, operands.keys.shape[3]
    out = queries.qk.new_empty((b, count, np // GROUP), dtype=torch.float32)
    block_q, block_n = config["BLOCK_Q"], config["BLOCK_N"]
    split_maxima[(-(-count // block_q), np // (block_n * GROUP), b)](
        operands, memory.args.ends[-1], out, first, count,
        CK=ckp, E_EXACT=e_is_exact(queries), BLOCK_Q=block_q, BLOCK_N=block_n, **configs.launch(config),
    )  # fmt: skip
    tiles, chunks = -(-count // TILE), np // (FALLBACK_GROUPS * GROUP)
    # Few programs, since most leave at once.
    fallback_maxima[(tiles, min(chunks, max(1, FALLBACK_PROGRAMS // (tiles * b))), b)](
        memory.args, queries, operands, out, q, first, count, ck**-0.5, CK=ck, BLOCK_Q=block_q, num_warps=8
    )
    return out


@triton.jit
def _store_maxima(
    out: tl.tensor, best: tl.tensor, b: tl.tensor, row: tl.tensor, group: tl.tensor, count: tl.tensor, groups: tl.tensor
) -> None:
    """best [queries, a block of groups] becomes part of out [B, count, groups]."""
    at = out + (b * count + row)[:, None] * groups + group[None, :]
    tl.store(at, best, mask=(row < count)[:, None])


@triton.jit(do_not_specialize=["first", "count"])
def split_maxima(
    operands: SplitOperands, end: tl.tensor, out: tl.tensor, first: tl.tensor, count: tl.tensor,
    CK: tl.constexpr, E_EXACT: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """out [B, count, NP / GROUP]: largest score of each group of tokens, for certified tiles of queries.

    Grid [tiles of BLOCK_Q queries, chunks of BLOCK_N groups, B]. Step t of a program scores the t-th token of each of
    its groups, so that the maximum over a group is one of whole tiles. ``end`` is the number behind the last token.
    """
    b = tl.program_id(2).to(tl.int64)
    first_tile = first // BLOCK_Q + tl.program_id(0)
    fallback = needs_fallback(operands, b, first_tile * BLOCK_Q, BLOCK_Q)
    if fallback | (tl.program_id(1) * (BLOCK_N * _GROUP) >= number(end)):
        return
    query = first_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_parts = load_query_parts(operands.queries + b * operands.QP * 4 * CK, query, CK, E_EXACT)
    offset = tl.load(operands.offset + b * operands.QP + query)[:, None]
    group = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    best = tl.full((BLOCK_Q, BLOCK_N), -float("inf"), tl.float32)
    for t in range(_GROUP):
        token = group * _GROUP + t
        product = split_product(operands.keys + b * operands.NP * 4 * CK, token, query_parts, CK, E_EXACT)
        best = tl.maximum(best, (product + offset) * tl.load(operands.scale + b * operands.NP + token)[None, :])
    best = best * tl.load(operands.unscale + b * operands.QP + query)[:, None]
    _store_maxima(out, best, b, query - first, group, count, operands.NP // _GROUP)


@triton.jit(do_not_specialize=["Q", "first", "count"])
def fallback_maxima(
    memory: MemoryArgs, queries: QueryArgs, operands: SplitOperands, out: tl.tensor,
    Q: tl.tensor, first: tl.tensor, count: tl.tensor, root: tl.tensor,
    CK: tl.constexpr, BLOCK_Q: tl.constexpr,
) -> None:  # fmt: skip
    """The same by the direct form, for blocks of BLOCK_Q that are not certified.

    Grid [tiles of TILE queries, programs that share the chunks of FALLBACK_GROUPS groups, B].
    """
    b = tl.program_id(2).to(tl.int64)
    tile = first // _TILE + tl.program_id(0)
    if not needs_fallback(operands, b, tile * _TILE, BLOCK_Q):
        return
    query = tile * _TILE + tl.arange(0, _TILE)
    chunks = tl.cdiv(end_of(memory), _FALLBACK_GROUPS * _GROUP).to(tl.int32)
    for chunk in range(tl.program_id(1), chunks, tl.num_programs(1)):
        group = chunk * _FALLBACK_GROUPS + tl.arange(0, _FALLBACK_GROUPS)
        best = tl.full((_TILE, _FALLBACK_GROUPS), -float("inf"), tl.float32)
        for t in range(_GROUP):
            token = group.to(tl.int64) * _GROUP + t
            best = tl.maximum(best, direct_scores(memory, queries, b, query, token, Q, root, CK))
        _store_maxima(out, best, b, query - first, group, count, operands.NP // _GROUP)


def candidate_groups(maxima: Tensor, k: int, end: Place) -> Tensor:
    """The k groups with the largest of maxima [B, count, groups] -> [B, count, k] int32, ascending.

    end: the number behind the last token, as in ``MemoryArgs.ends``; maxima of later groups do not matter. QUAD divides
    the number of groups. One launch. Where there are more than WIDEST groups, too many for a program, two more for each
    factor of GROUP.
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
        out = level.new_empty((b, count, min(k, groups)), dtype=torch.int32)
        coarse = 0
        if chosen is None and groups > out.shape[2] * GROUP:
            coarse, candidates = configs.power_of_2_from(-(-groups // GROUP)), out.shape[2] * GROUP
        width = configs.power_of_2_from(candidates)
        select_groups[(count, b)](
            level, chosen, out, end, GROUP ** (i + 1), groups, candidates, out.shape[2], count,
            WIDTH=width, COARSE=coarse, num_warps=max(1, width // 1024, coarse * GROUP // 2048),
        )  # fmt: skip
        chosen = out
    assert chosen is not None
    return chosen


def _coarser(maxima: Tensor, end: Place, span: int) -> Tensor:
    b, count, groups = maxima.shape
    out = maxima.new_empty((b, count, -(-groups // (QUAD * GROUP)) * QUAD))
    coarser_maxima[(b * count, -(-out.shape[2] // BLOCK))](maxima, out, end, span, groups, out.shape[2])
    return out


@triton.jit(do_not_specialize=["GROUPS", "COARSE"])
def coarser_maxima(
    maxima: tl.tensor, out: tl.tensor, end: tl.tensor, span: tl.tensor, GROUPS: tl.tensor, COARSE: tl.tensor
) -> None:
    """Maxima of GROUP consecutive groups of ``span`` tokens: [rows, GROUPS] -> [rows, COARSE].

    Grid [rows, blocks of COARSE].
    """
    row = tl.program_id(0).to(tl.int64)
    coarse = tl.program_id(1) * _BLOCK + tl.arange(0, _BLOCK)
    group = coarse[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    exists = group.to(tl.int64) * span < number(end)
    x = tl.load(maxima + row * GROUPS + group, mask=exists, other=-float("inf"))
    tl.store(out + row * COARSE + coarse, tl.max(x, 1), mask=coarse < COARSE)


@triton.jit
def order_key(x: tl.tensor) -> tl.tensor:
    """int32 in the order of float32, the zeros equal, above the smallest int32."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & _MAGNITUDE)


@triton.jit
def best_of(key: tl.tensor, K: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The K largest of int32 keys [W], of equal ones the first -> whether each is one, and its place among them.

    Bisection over the bits finds the K-th largest, so that the work does not depend on the data. K <= W < 2^15.
    """
    kth = tl.where(tl.sum((key >= 0).to(tl.int32), 0) >= K, 0, _LEAST_INT32)
    for bit in range(31):
        higher = kth + (1 << (30 - bit))
        kth = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= K, higher, kth)
    above = key > kth
    equal = key == kth
    room = K - tl.sum(above.to(tl.int32), 0)
    # Two counts in one: scans are the dearest step here.
    before = tl.cumsum(tl.where(above, 1, tl.where(equal, _SECOND_COUNT, 0)), 0)
    equals = before >> 16
    return above | (equal & (equals <= room)), (before & 0xFFFF) + tl.minimum(equals, room) - 1


@triton.jit(do_not_specialize=["GROUPS", "candidates", "K", "count"])
def select_groups(
    maxima: tl.tensor, parents: tl.tensor, out: tl.tensor, end: tl.tensor, span: tl.tensor,
    GROUPS: tl.tensor, candidates: tl.tensor, K: tl.tensor, count: tl.tensor,
    WIDTH: tl.constexpr, COARSE: tl.constexpr,
) -> None:  # fmt: skip
    """out [B, count, K] int32: of ``candidates`` groups the K largest, of equal ones the first, in ascending order.

    Groups are of ``span`` tokens. Candidates are all GROUPS of them, or those of ``parents`` [B, count, candidates /
    GROUP] groups of groups, or None. Where COARSE is not 0, it is the number of groups of groups, at most, from which
    this kernel chooses parents itself. Grid [count, B].
    """
    row = tl.program_id(1).to(tl.int64) * count + tl.program_id(0)
    there = GROUPS // _QUAD * _QUAD  # GROUPS, in a form that tells the compiler that loads may be wide
    maxima += row * there
    to = out + row * K
    # Nothing is written behind the last token; what would be read there comes last.
    existing = tl.minimum((number(end) + span - 1) // span, GROUPS).to(tl.int32)
    group = tl.arange(0, WIDTH)
    candidate = group < candidates
    if COARSE > 0:
        coarse = tl.arange(0, COARSE)
        all_groups = coarse[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
        x = tl.load(maxima + all_groups, mask=all_groups < there, other=0.0)
        x = tl.max(tl.where(all_groups < existing, x, -float("inf")), 1)
        chosen, place = best_of(order_key(x), K)
        tl.store(to + place, coarse, mask=chosen)
        of_parents = to
        tl.debug_barrier()
    elif parents is not None:
        of_parents = parents + row * (candidates // _GROUP)
    if (parents is not None) or COARSE > 0:
        parent = tl.arange(0, WIDTH // _GROUP)
        parent = tl.load(of_parents + parent, mask=parent < candidates // _GROUP, other=0)
        children = parent[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
        x = tl.reshape(tl.load(maxima + children, mask=children < there, other=0.0), (WIDTH,))
        group = tl.reshape(children, (WIDTH,))
        tl.debug_barrier()  # places of parents read here may be written below
    else:
        x = tl.load(maxima + group, mask=group < there, other=0.0)
    x = tl.where(candidate & (group < existing), x, -float("inf"))
    chosen, place = best_of(order_key(x), K)
    tl.store(to + place, group, mask=chosen)
