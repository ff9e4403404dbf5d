"""Reads of a memory whose tokens lie on several ranks (Eq. 1 and 2).

Top-k: a token among the k best of all ranks is among the k best of its own. Each rank therefore
offers its best candidates with their scores, and all ranks choose among all candidates alike.
Scores are those of the direct form of Eq. 2 in float64, which depends on a token and a query alone,
not on the rank's other tokens, so the choice does not depend on how the tokens are distributed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import api, checks
from ..inputs import MemoryInputs, QueryInputs
from ..plain.tokens import gather_rows
from .shards import Placement, Shards, replicated, total

Segments = Tensor | Sequence[Tensor]

# Candidates of a rank beyond k. A rank finds its candidates by float32 scores. So many tokens may
# be closer to the k-th than float32 can tell apart before one is missed.
SPARE = 8
_BYTES = 64 << 20  # of a block of scores
_NOWHERE = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Affinity:
    """The part of a top-k affinity that falls on this rank's tokens.

    weight [B, Q, k] is 0 where a slot's token lies on another rank. index [B, Q, k] counts this
    rank's tokens. count [B, Q]: the slots that are this rank's, which come first.
    """

    weight: Tensor
    index: Tensor
    count: Tensor


def memory_read(
    mk: Segments,
    ms: Segments | None,
    mv: Segments,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int | None = None,
    return_usage: bool = False,
    backend: str = "auto",
    shards: Shards,
    place: Tensor | Placement | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`xmemk.memory_read` over the tokens of all ranks.

    mk, ms, mv: this rank's tokens, possibly none. qk, qe: the queries, equal on every rank. place:
    [N] int64, ascending: where this rank's tokens stand in the whole memory, by which ties are
    broken; None for rank after rank.

    Returns the readout [B, O, CV, Q], equal on every rank, and with ``return_usage`` the usage
    [B, N] of this rank's tokens. Differentiable, where every rank computes the same loss from the
    readout. Raises as :func:`xmemk.memory_read` does; ValueError, on every rank, where ranks
    disagree about sizes or hold no token at all.
    """
    memory, queries = _checked(mk, ms, mv, qk, qe, top_k)
    placement = _placement(memory, queries, place, shards)
    queries = QueryInputs(replicated(qk, shards), None if qe is None else replicated(qe, shards))
    if top_k is None:
        readouts, usage = dense(memory, queries, [memory.mv], placement, shards, return_usage)
        readout = readouts[0].to(memory.mv[0].dtype)
        return readout if usage is None else (readout, usage)
    affinity = _affinity(memory, queries, top_k, placement, shards, backend)
    readout = _readout(memory.mv, affinity, shards, backend)
    return (readout, _usage(affinity, memory.tokens)) if return_usage else readout


def affinity_topk(
    mk: Segments,
    ms: Segments | None,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int,
    return_usage: bool = False,
    backend: str = "auto",
    shards: Shards,
    place: Tensor | Placement | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """:func:`xmemk.affinity_topk` over the tokens of all ranks: the part on this rank's tokens.

    Returns weight and index [B, Q, k], with weight 0 in slots whose token lies elsewhere, and with
    ``return_usage`` the usage [B, N] of this rank's tokens.
    """
    memory, queries = _checked(mk, ms, None, qk, qe, top_k)
    placement = _placement(memory, queries, place, shards)
    with torch.no_grad():
        affinity = _affinity(memory, queries, top_k, placement, shards, backend)
        if return_usage:
            return affinity.weight, affinity.index, _usage(affinity, memory.tokens)
        return affinity.weight, affinity.index


def readout_topk(
    mv: Segments,
    weight: Tensor,
    index: Tensor,
    *,
    scale: Segments | None = None,
    backend: str = "auto",
    shards: Shards,
) -> Tensor:
    """:func:`xmemk.readout_topk` over the tokens of all ranks, of :func:`affinity_topk`'s parts."""
    segments = [mv] if isinstance(mv, Tensor) else list(mv)
    if sum(v.shape[3] for v in segments) == 0:
        b, o, cv, _ = segments[0].shape
        dtype = torch.float32 if scale is not None else segments[0].dtype
        part = weight.new_zeros(b, o, cv, weight.shape[1], dtype=dtype)
    else:
        part = api.readout_topk(mv, weight, index, scale=scale, backend=backend)
    return total(part, shards).to(part.dtype)


def dense(
    memory: MemoryInputs,
    queries: QueryInputs,
    values: Sequence[Sequence[Tensor]],
    placement: Placement,
    shards: Shards,
    return_usage: bool,
) -> tuple[list[Tensor], Tensor | None]:
    """Softmax over all tokens of all ranks, in blocks of queries.

    values: sets of segments [B, O, CV, N_i] to average. Returns a readout [B, O, CV, Q] of each in
    float32 (float64 for float64 keys), and this rank's usage [B, N] or None.
    """
    b, _, q = queries.qk.shape
    n = memory.tokens
    dtype = torch.promote_types(queries.qk.dtype, torch.float32)
    step = max(1, _BYTES // (4 * b * max(placement.most, 1)))
    usage = torch.zeros(b, n, dtype=dtype, device=queries.qk.device)
    parts: list[list[Tensor]] = [[] for _ in values]
    for start in range(0, q, step):
        block = QueryInputs(
            queries.qk[:, :, start : start + step],
            None if queries.qe is None else queries.qe[:, :, start : start + step],
        )
        weight = _softmax(_scores(memory, block, dtype), shards)
        if return_usage:
            usage = usage + weight.nan_to_num(0.0).sum(2)
        for into, segments in zip(parts, values):
            into.append(_averaged(segments, weight, dtype))
    readouts = [
        total(torch.cat(into, 3), shards) if into else segments[0].new_zeros(*segments[0].shape[:3], 0, dtype=dtype)
        for into, segments in zip(parts, values)
    ]
    return readouts, usage if return_usage else None


def _checked(
    mk: Segments, ms: Segments | None, mv: Segments | None, qk: Tensor, qe: Tensor | None, top_k: int | None
) -> tuple[MemoryInputs, QueryInputs]:
    """Checked as the public functions do, except that this rank may have no token."""
    if top_k is not None:
        checks.top_k(top_k)
    segments = [mk] if isinstance(mk, Tensor) else list(mk)
    if segments and all(isinstance(k, Tensor) and k.dim() == 3 and k.shape[2] == 0 for k in segments):
        shrinkage = None if ms is None else [ms] if isinstance(ms, Tensor) else list(ms)
        values = [] if mv is None else [mv] if isinstance(mv, Tensor) else list(mv)
        return MemoryInputs(segments, shrinkage, values), QueryInputs(qk, qe)
    return checks.read(mk, ms, mv, qk, qe, with_values=mv is not None)


def _placement(
    memory: MemoryInputs, queries: QueryInputs, place: Tensor | Placement | None, shards: Shards
) -> Placement:
    """ValueError where ranks disagree about sizes, or none holds a token."""
    if isinstance(place, Placement):
        return place
    values = memory.mv[0].shape[1:3] if memory.mv else (0, 0)
    shards.expect_equal("qk [B, CK, Q] and mv [O, CV]", [*queries.qk.shape, *values], queries.qk.device)
    placement = Placement.of(memory.tokens, place, shards, queries.qk.device)
    if placement.most == 0:
        raise ValueError("mk: the memory is empty on every rank; there is nothing to read")
    return placement


def _affinity(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, placement: Placement, shards: Shards, backend: str
) -> Affinity:
    score, index = _candidates(memory, queries, top_k, placement.most, backend)
    standing = placement.place[index] if memory.tokens else torch.full_like(index, _NOWHERE)
    # Best first; of equal scores the token that stands first.
    order = standing.argsort(dim=2, stable=True)
    order = order.gather(2, score.detach().gather(2, order).argsort(dim=2, descending=True, stable=True))
    score, index, standing = (x.gather(2, order) for x in (score, index, standing))
    known = score.detach()
    peak, last, norm, limit = _agreed(known, standing, top_k, shards)
    mine = ((known > last) | ((known == last) & (standing <= limit))) & (known != -math.inf)
    raised = (score - peak).exp().where(mine, 0.0)
    # A query without any finite score reads NaN.
    raised = raised.where(peak != -math.inf, math.nan)
    if raised.requires_grad:  # the same sum, differentiable
        norm = replicated(total(raised.sum(2, keepdim=True), shards), shards)
    weight = (raised / norm).to(torch.promote_types(queries.qk.dtype, torch.float32))
    index = index.where(mine, index[:, :, :1])
    k = min(top_k, index.shape[2])
    return Affinity(weight[:, :, :k], index[:, :, :k], mine.sum(2))


def _candidates(
    memory: MemoryInputs, queries: QueryInputs, top_k: int, most: int, backend: str
) -> tuple[Tensor, Tensor]:
    """This rank's best tokens of each query: scores and index [B, Q, c], -inf where there is none.

    most: the tokens of the largest shard, so that c is the same on every rank.
    """
    b, _, q = queries.qk.shape
    count = min(top_k + SPARE, most)
    if memory.tokens == 0:
        empty = queries.qk.new_full((b, q, count), -math.inf, dtype=torch.float64)
        return empty, torch.zeros(b, q, count, dtype=torch.int64, device=empty.device)
    with torch.no_grad():
        index = api.affinity_topk(memory.mk, memory.ms, *queries, top_k=count, backend=backend)[1]
    score = _direct(memory, queries, index)
    # Slots that are left over repeat the best token.
    slot = torch.arange(index.shape[2], device=index.device)
    score = score.where((index != index[:, :, :1]) | (slot == 0), -math.inf)
    missing = count - index.shape[2]
    pad = torch.nn.functional.pad
    return pad(score, (0, missing), value=-math.inf), pad(index, (0, missing))


def _agreed(score: Tensor, standing: Tensor, top_k: int, shards: Shards) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What all ranks' candidates [B, Q, c] say of each query, [B, Q, 1] each.

    The best score, the k-th best, the norm of the softmax, and the last place of a token that is
    chosen with the k-th. Each rank merges a slice of the queries and tells the others.
    """
    b, q, c = score.shape
    slices = shards.slices_of(q)
    mine = slices[shards.rank]
    message = torch.stack([score, standing.view(torch.float64)], 3)
    parts = shards.exchange([message[:, part] for part in slices], [b, mine.stop - mine.start, c, 2])
    every = torch.cat([part[..., 0] for part in parts], 2)
    everywhere = torch.cat([part[..., 1].contiguous().view(torch.int64) for part in parts], 2)
    best = every.topk(min(top_k, every.shape[2]), 2).values
    peak, last = best[:, :, :1], best[:, :, -1:]
    # Of the tokens that share the k-th score, those that stand first fill the slots left.
    tied = every == last
    slots = best.shape[2] - (every > last).sum(2, keepdim=True)
    limit = torch.full_like(slots, _NOWHERE)
    if bool((tied.sum(2, keepdim=True) > slots).any()):
        limit = everywhere.where(tied, _NOWHERE).sort(2).values.gather(2, slots - 1)
    norm = (best - peak).exp().sum(2, keepdim=True)
    verdict = torch.stack([peak, last, norm, limit.view(torch.float64)])[..., 0]
    peak, last, norm, limit = shards.gather_last(verdict, [part.stop - part.start for part in slices], 0.0).unsqueeze(3)
    return peak, last, norm, limit.contiguous().view(torch.int64)


def _direct(memory: MemoryInputs, queries: QueryInputs, index: Tensor) -> Tensor:
    """Eq. 2 as it is written, in float64, of selected tokens: [B, Q, c]."""
    number = torch.float64
    q = queries.qk.to(number).transpose(1, 2)
    e = None if queries.qe is None else queries.qe.to(number).transpose(1, 2)
    ck = q.shape[2]
    step = max(1, _BYTES // (8 * ck * index.shape[0] * index.shape[2]))
    scores = []
    for a in range(0, index.shape[1], step):
        i = index[:, a : a + step]
        squared = (gather_rows(memory.mk, i, number) - q[:, a : a + step].unsqueeze(2)).square()
        if e is not None:
            squared = squared * e[:, a : a + step].unsqueeze(2)
        score = -squared.sum(3) / math.sqrt(ck)
        scores.append(score if memory.ms is None else score * gather_rows(memory.ms, i, number)[..., 0])
    score = torch.cat(scores, 1) if scores else q.new_zeros(index.shape)
    return score.where(~score.isnan() & (score != math.inf), -math.inf)


def _readout(mv: list[Tensor], affinity: Affinity, shards: Shards, backend: str) -> Tensor:
    if sum(v.shape[3] for v in mv) == 0:
        b, o, cv, _ = mv[0].shape
        part = mv[0].new_zeros(b, o, cv, affinity.weight.shape[1])
        # A query without a finite score reads NaN on every rank.
        part = part + affinity.weight.detach().sum(2)[:, None, None].to(part.dtype)
    else:
        part = api.readout_topk(mv, affinity.weight, affinity.index, backend=backend)
        # Slots of other ranks name a token here, whose value may be no number.
        elsewhere = (affinity.count == 0) & ~affinity.weight.isnan().any(2)
        part = part.where(~elsewhere[:, None, None], 0.0)
    return total(part, shards).to(mv[0].dtype)


def _usage(affinity: Affinity, tokens: int) -> Tensor:
    usage = affinity.weight.new_zeros(affinity.weight.shape[0], tokens)
    if tokens == 0:
        return usage
    return usage.scatter_add(1, affinity.index.flatten(1), affinity.weight.flatten(1).nan_to_num(0.0))


def _scores(memory: MemoryInputs, queries: QueryInputs, dtype: torch.dtype) -> Tensor:
    """[B, N, q], -inf where a score is no number."""
    b, _, q = queries.qk.shape
    if memory.tokens == 0:
        return queries.qk.new_zeros(b, 0, q, dtype=dtype)
    score = api.similarity(memory.mk, memory.ms, *queries)
    return score.where(~score.isnan() & (score != math.inf), -math.inf)


def _softmax(score: Tensor, shards: Shards) -> Tensor:
    """The softmax over dimension 1 of all ranks' scores [B, N, q]."""
    b, n, q = score.shape
    known = score.detach()
    peak = shards.largest(known.amax(1) if n else known.new_full((b, q), -math.inf))
    raised = (score - peak.unsqueeze(1)).exp()
    norm = raised.sum(1) if n else peak.where(peak == -math.inf, 0.0) * 0.0
    return raised / replicated(total(norm, shards), shards).unsqueeze(1)


def _averaged(segments: Sequence[Tensor], weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, O, CV, q] of values [B, O, CV, N_i] and weight [B, N, q]."""
    parts = weight.split([v.shape[3] for v in segments], 1)
    averages = [v.to(dtype) @ w.unsqueeze(1) for v, w in zip(segments, parts)]
    return sum(averages[1:], averages[0])
