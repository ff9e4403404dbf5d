"""Prototype selection, potentiation and eviction over the tokens of all ranks (Sec. 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .. import api
from ..inputs import MemoryInputs, QueryInputs
from ..plain.tokens import gather_rows
from .read import Segments, dense
from .shards import Placement, Shards


def select_prototypes(
    usage: Tensor, num_prototypes: int, placement: Placement, *, shards: Shards
) -> tuple[Tensor, Tensor]:
    """:func:`xmemk.select_prototypes` over all ranks.

    usage [B, N] and placement of this rank's tokens. Returns, for each of the P prototypes in
    order, whether it is this rank's [B, P] and its index [B, P] here (0 where it is not).
    """
    order, sizes = _everywhere(usage, placement, shards)
    chosen = order.index.gather(1, api.select_prototypes(order.usage, num_prototypes))
    first = sum(sizes[: shards.rank])
    here = (chosen >= first) & (chosen < first + usage.shape[1])
    return here, (chosen - first).where(here, 0)


def evict_lfu(usage: Tensor, keep: int, placement: Placement, *, shards: Shards) -> tuple[Tensor, list[int]]:
    """:func:`xmemk.evict_lfu` over all ranks, for a batch of one.

    usage [1, N] and placement of this rank's tokens; ``keep`` tokens of all ranks stay. Returns
    those of this rank [1, n], ascending, and how many stay on each rank.
    """
    if usage.shape[0] != 1:
        raise ValueError(f"usage: wanted a batch of 1, so that ranks keep one number of tokens, got {usage.shape[0]}")
    order, sizes = _everywhere(usage, placement, shards)
    stay = order.index.gather(1, api.evict_lfu(order.usage, keep))[0].sort().values
    bounds = torch.tensor([0, *sizes], device=stay.device).cumsum(0)
    at = torch.searchsorted(stay, bounds).tolist()
    counts = [after - before for before, after in pairwise(at)]
    mine = stay[at[shards.rank] : at[shards.rank + 1]] - bounds[shards.rank]
    return mine[None], counts


def consolidate(
    mk: Segments,
    ms: Segments | None,
    me: Segments | None,
    mv: Segments,
    usage: Tensor,
    num_prototypes: int,
    placement: Placement,
    *,
    shards: Shards,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`xmemk.consolidate` of the candidates of all ranks; the same result on every rank.

    placement: of the candidates.
    """
    memory = MemoryInputs(_list(mk), None if ms is None else _list(ms), _list(mv))
    here, index = select_prototypes(usage.detach(), num_prototypes, placement, shards=shards)
    pk = _broadcast(memory.mk, here, index, shards)
    pe = None if me is None else _broadcast(_list(me), here, index, shards)
    dtype = torch.promote_types(pk.dtype, torch.float32)
    if memory.ms is None:
        shrinkage = [k.new_ones(k.shape[0], 1, k.shape[2], dtype=dtype) for k in memory.mk]
    else:
        shrinkage = memory.ms
    values = [memory.mv, [s[:, None] for s in shrinkage]]
    (pv, ps), _ = dense(memory, QueryInputs(pk, pe), values, placement, shards, False)
    return pk, ps[:, 0], pv.to(memory.mv[0].dtype)


class _Order:
    """The usage [B, N] of all ranks' tokens in the order of the memory, and where each lies."""

    def __init__(self, usage: Tensor, place: Tensor) -> None:
        order = place.argsort()
        self.usage = usage[:, order]
        self.index = order.expand(usage.shape[0], -1)


def _everywhere(usage: Tensor, placement: Placement, shards: Shards) -> tuple[_Order, Sequence[int]]:
    sizes = placement.sizes
    every = shards.gather_last(usage, sizes, 0.0)
    return _Order(every, shards.gather_last(placement.place, sizes, 0)), sizes


def _broadcast(segments: Sequence[Tensor], here: Tensor, index: Tensor, shards: Shards) -> Tensor:
    """The chosen tokens [B, C, P] of segments [B, C, N_i], from the ranks that hold them."""
    dtype = segments[0].dtype
    wide = torch.promote_types(dtype, torch.float32)
    b, c = segments[0].shape[:2]
    if sum(x.shape[2] for x in segments):
        rows = gather_rows(list(segments), index.unsqueeze(1), wide)[:, 0].where(here.unsqueeze(2), 0.0)
    else:
        rows = segments[0].new_zeros(b, index.shape[1], c, dtype=wide)
    return shards.total(rows).to(dtype).transpose(1, 2)


def _list(segments: Segments) -> list[Tensor]:
    return [segments] if isinstance(segments, Tensor) else list(segments)
