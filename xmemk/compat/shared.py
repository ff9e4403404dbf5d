"""Reads of several buckets, with one similarity for the frames that all of them hold.

Every bucket chooses its own k tokens. The k best of all its tokens are among the k best of the
common frames and the k best of the rest. So the common frames are searched once, each rest by
itself, and the two lists are merged. Weights of one list stand to each other as in the whole
memory; how the two lists stand to each other is told by the similarity of each list's best token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import api
from ..inputs import QueryInputs
from ..memory.table import LONG_TERM, Run
from .bucket import HostBucket


class Affinity(NamedTuple):
    """The sparse affinity of a bucket: weights, tokens [B, Q, k], and usage [B, N] or None."""

    weight: Tensor
    tokens: Tensor
    usage: Tensor | None


class _Best(NamedTuple):
    """The best tokens of a part of a bucket."""

    log_weight: Tensor  # [B, Q, k], plus the similarity of the best: comparable between parts
    tokens: Tensor  # [B, Q, k] in the part


def common_frames(buckets: Sequence[HostBucket]) -> list[int]:
    """The frames that all of these buckets hold, by number, where there is more than one bucket."""
    if len(buckets) < 2:
        return []
    shared = set.intersection(*(set(bucket.frame_numbers) for bucket in buckets))
    return sorted(shared)


def affinities(
    buckets: Sequence[HostBucket],
    common: Sequence[int],
    queries: QueryInputs,
    top_k: int,
    return_usage: bool,
    backend: str,
) -> list[Affinity]:
    """The affinity of each bucket, whose ``common`` frames are searched once."""
    first, everywhere = buckets[0], set(common)
    slots = [first.arena.frames[first.frame_numbers.index(number)] for number in common]
    shared = _best(first, first.arena.table.runs(slots), queries, top_k, backend)
    results = []
    for bucket in buckets:
        part = _Best(shared.log_weight, _to_bucket(shared.tokens, bucket, common, 0))
        rest = [number for number in bucket.frame_numbers if number not in everywhere]
        slots = [bucket.arena.frames[bucket.frame_numbers.index(number)] for number in rest]
        long_term = bucket.arena.long_term
        runs = [Run(LONG_TERM, 0, long_term)] if long_term else []
        runs += bucket.arena.table.runs(slots)
        if runs:
            own = _best(bucket, runs, queries, top_k, backend)
            tokens = torch.cat([part.tokens, _to_bucket(own.tokens, bucket, rest, long_term)], 2)
            part = _Best(torch.cat([part.log_weight, own.log_weight], 2), tokens)
        best = part.log_weight.topk(min(top_k, part.log_weight.shape[2]), dim=2)
        weight, index = best.values.softmax(2), part.tokens.gather(2, best.indices)
        usage = None
        if return_usage:
            usage = weight.new_zeros(weight.shape[0], bucket.arena.tokens)
            usage = usage.scatter_add_(1, index.flatten(1), weight.flatten(1))
        results.append(Affinity(weight, index, usage))
    return results


def _best(bucket: HostBucket, runs: list[Run], queries: QueryInputs, top_k: int, backend: str) -> _Best:
    memory = bucket.arena.keys(runs)
    weight, index = api.affinity_topk(memory.mk, memory.ms, *queries, top_k=top_k, backend=backend)[:2]
    nearest = _similarity(torch.cat(list(memory.mk), 2), torch.cat(list(memory.ms or ()), 2), queries, index[:, :, 0])
    return _Best((weight / weight[:, :, :1]).log() + nearest[:, :, None], index)


def _similarity(mk: Tensor, ms: Tensor, queries: QueryInputs, token: Tensor) -> Tensor:
    """S [B, Q] of one token for each query, by Eq. 2 as written."""
    number = torch.promote_types(mk.dtype, torch.float32)
    key = mk.to(number).gather(2, token[:, None].expand(-1, mk.shape[1], -1))
    distance = (key - queries.qk.to(number)).square()
    if queries.qe is not None:
        distance = distance * queries.qe.to(number)
    return -distance.sum(1) * ms[:, 0].to(number).gather(1, token) / math.sqrt(mk.shape[1])


def _to_bucket(tokens: Tensor, bucket: HostBucket, numbers: Sequence[int], long_term: int) -> Tensor:
    """The place in a bucket of tokens of a part: ``long_term`` tokens, then these frames."""
    frame, before = bucket.arena.spec.frame, bucket.arena.long_term
    starts = [before + bucket.frame_numbers.index(number) * frame for number in numbers]
    inside = (tokens - long_term).clamp_min(0)
    places = torch.tensor(starts or [0], device=tokens.device)[inside // frame] + inside % frame
    return torch.where(tokens < long_term, tokens, places)
