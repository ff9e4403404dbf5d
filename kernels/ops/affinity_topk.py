"""affinity_topk: the exact k best tokens of each query and their softmax weights, in a few launches.

Two prepare operands (split_operands.py), two find group maxima and one chooses groups (affinity_topk_groups.py), one
here rescores their tokens; two more where usage is wanted. Where k groups would hold the whole memory, the one here does
it all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...inputs import MemoryInputs, QueryInputs
from .. import configs
from ..split_operands import prepare
from ..structs import MemoryArgs, Pointer, QueryArgs, Segments, padded_channels, query_args, segments
from ..tiles import bound, end_of, load_queries, load_shrinkage, origin, readable
from . import affinity_topk_usage as usages
from .affinity_topk_groups import GROUP, best_of, candidate_groups, group_maxima, order_key
from .affinity_topk_usage import LIMBS, add_usage

MAXIMA_BYTES = 128 << 20  # of group maxima at a time; beyond, queries go in turns
TURN = 128  # queries of a turn are a multiple of this
ROWS = 64  # tokens that a program scores at a time
OTHERS = 16  # of the k best that each is compared with at a time
# Without this ptxas aims lower and leaves a few bytes on the stack.
REGISTERS = 200

_GROUP = tl.constexpr(GROUP)
_LIMBS = tl.constexpr(LIMBS)
_ROWS = tl.constexpr(ROWS)
_OTHERS = tl.constexpr(OTHERS)


class Selection(NamedTuple):
    """Each query's k best tokens."""

    weight: Pointer  # [B, Q, k] float32, descending
    index: Pointer  # [B, Q, k] int64
    sums: Pointer | None  # [B, LIMBS, N] int64, to be added to, where usage is wanted


def affinity_topk(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> weight [B, Q, k] float32, descending, index [B, Q, k] int64, k = min(top_k, N); usage [B, N] or None."""
    used = segments(memory)
    by_groups = used.tokens > min(top_k, used.tokens) * GROUP
    return select(used, query_args(queries), top_k, return_usage, by_groups)


def select(
    memory: Segments, queries: QueryArgs, top_k: int, return_usage: bool, by_groups: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same of inputs as the kernels take them; ``by_groups`` where there are more than k * GROUP tokens."""
    qk = queries.qk
    b, _, q = qk.shape
    k = min(top_k, memory.tokens)
    weight = qk.new_empty((b, q, k), dtype=torch.float32)
    index = qk.new_empty((b, q, k), dtype=torch.int64)
    sums = usages.new_sums(qk, b, memory.tokens) if return_usage else None
    if weight.numel() > 0:
        out = Selection(weight, index, sums)
        if by_groups:
            _select_by_groups(memory, queries, out)
        else:
            _weigh(memory, queries, None, 0, q, out)
    return weight, index, None if sums is None else usages.finish(sums, usages.usage_bits(q))


def _select_by_groups(memory: Segments, queries: QueryArgs, out: Selection) -> None:
    b, q, k = out.weight.shape
    config = configs.of("split_maxima", queries.qk, queries.qk.shape[1])
    operands = prepare(memory, queries, config["BLOCK_N"] * GROUP)
    room = MAXIMA_BYTES // (4 * b * (operands.NP // GROUP))
    turns = -(-q // max(TURN, room // TURN * TURN))
    turn = -(-q // (turns * TURN)) * TURN
    for first in range(0, q, turn):
        count = min(turn, q - first)
        maxima = group_maxima(operands, memory, queries, first, count, config)
        groups = candidate_groups(maxima, k, memory.args.ends[-1])
        del maxima  # before those of the next turn are made
        _weigh(memory, queries, groups, first, count, out)


def _weigh(
    memory: Segments, queries: QueryArgs, groups: Tensor | None, first: int, count: int, out: Selection
) -> None:
    b, q, k = out.weight.shape
    ck = queries.qk.shape[1]
    candidates = memory.tokens if groups is None else k * GROUP
    width = configs.power_of_2_from(candidates)
    weigh_candidates[(count, b)](
        memory.args, queries, groups, out, memory.tokens, q, first, count, candidates,
        root=1 / math.sqrt(ck), unit=2.0 ** usages.usage_bits(q),
        CK=ck, CKP=padded_channels(ck), K=k, KP=configs.power_of_2_from(k), WIDTH=width,
        num_warps=2 if width < 2048 else 8, maxnreg=REGISTERS,
    )  # fmt: skip


@triton.jit
def _gather_tokens(
    memory: MemoryArgs, b: tl.tensor, token: tl.tensor, channel: tl.tensor, CK: tl.constexpr
) -> tl.tensor:
    """As ``tiles.load_tokens``, without a selection: a masked load of a segment keeps what the others gave."""
    rows = tl.zeros((token.shape[0], channel.shape[0]), memory.mk[0].dtype.element_ty)
    for i in tl.static_range(len(memory.mk)):
        here = (token >= bound(memory.starts, i)) & (token < bound(memory.ends, i))
        offset = (token - origin(memory.starts, i))[:, None] * memory.mk_sn[i]
        offset += channel[None, :].to(tl.int64) * memory.mk_sc[i]
        mask = here[:, None] & (channel < CK)[None, :]
        rows = tl.load(memory.mk[i] + b.to(tl.int64) * memory.mk_sb[i] + offset, mask=mask, other=rows)
    return rows


@triton.jit(do_not_specialize=["N", "Q", "first", "count", "candidates"])
def weigh_candidates(
    memory: MemoryArgs, queries: QueryArgs, groups: tl.tensor, out: Selection,
    N: tl.tensor, Q: tl.tensor, first: tl.tensor, count: tl.tensor, candidates: tl.tensor,
    root: tl.tensor, unit: tl.tensor,
    CK: tl.constexpr, CKP: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Of a query's candidates the K best, best first, and the softmax of their scores.

    Candidates are the tokens of groups [B, count, candidates / GROUP], ascending, or all tokens where it is None; WIDTH
    and KP are the powers of two from their number and from K. The direct form of Eq. 2, which cancels nothing, scores
    them. Rows of ``out.sums`` are N long. ``root`` is 1 / sqrt(CK), ``unit`` as of add_usage. Grid [count, B].
    """
    ROWS: tl.constexpr = _ROWS if WIDTH > _ROWS else WIDTH
    STEPS: tl.constexpr = WIDTH // ROWS
    OTHERS: tl.constexpr = _OTHERS if KP > _OTHERS else KP
    b = tl.program_id(1)
    query = first + tl.program_id(0)
    row = b.to(tl.int64) * count + tl.program_id(0)
    channel = tl.arange(0, CKP)
    q, e = load_queries(queries, b, query + tl.arange(0, 1), Q, CK, CKP)
    tokens = end_of(memory)
    score = tl.full((STEPS, ROWS), -float("inf"), tl.float32)
    step = tl.arange(0, STEPS)[:, None]
    for i in range(STEPS):
        at = i * ROWS + tl.arange(0, ROWS)
        token = at.to(tl.int64)
        if groups is not None:
            group = tl.load(groups + row * (candidates // _GROUP) + at // _GROUP, mask=at < candidates, other=0)
            token = group.to(tl.int64) * _GROUP + at % _GROUP
        token = tl.where(at < candidates, token, tokens)
        x = _gather_tokens(memory, b, token, channel, CK).to(tl.float32) - q
        s = load_shrinkage(memory, b, token)
        new = tl.where(token < tokens, readable(-s * (tl.sum(e * x * x, 1) * root)), -float("inf"))
        score = tl.where(step == i, new[None, :], score)
    # The K best, in ascending order of their place; of equal scores the first.
    score = tl.reshape(score, (STEPS * ROWS,))
    chosen, place = best_of(order_key(score), K)
    weight = out.weight + (b.to(tl.int64) * Q + query) * K
    index = out.index + (b.to(tl.int64) * Q + query) * K
    tl.store(weight + place, score, mask=chosen)
    tl.store(index + place, tl.arange(0, STEPS * ROWS).to(tl.int64), mask=chosen)
    tl.debug_barrier()
    slot = tl.arange(0, KP)
    value = tl.load(weight + slot, mask=slot < K, other=-float("inf"))
    at = tl.load(index + slot, mask=slot < K, other=0)
    # Best first: a slot's rank is the number of those before it.
    rank = tl.zeros((KP,), tl.int32)
    for first_other in range(0, KP, OTHERS):
        other = first_other + tl.arange(0, OTHERS)
        x = tl.load(weight + other, mask=other < K, other=-float("inf"))[None, :]
        before = (x > value[:, None]) | ((x == value[:, None]) & (other[None, :] < slot[:, None]))
        rank += tl.sum(before.to(tl.int32), 1)
    tl.debug_barrier()  # what was read here is written below
    # A slot without a token repeats the best one with weight 0.
    at = tl.where(value == -float("inf"), tl.max(tl.where(rank == 0, at, 0), 0), at)
    w = tl.exp(value - tl.max(value, 0))
    w = tl.where(slot < K, w, 0.0)
    w = w / tl.sum(w, 0)
    token = at
    if groups is not None:
        group = tl.load(groups + row * (candidates // _GROUP) + at // _GROUP, mask=slot < K, other=0)
        token = group.to(tl.int64) * _GROUP + at % _GROUP
    tl.store(weight + rank, w, mask=slot < K)
    tl.store(index + rank, token, mask=slot < K)
    if out.sums is not None:
        add_usage(out.sums + b.to(tl.int64) * _LIMBS * N, token, w, N, unit, slot < K)
