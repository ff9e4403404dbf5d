"""Prototype selection, consolidation and eviction (Sec. 2.3, Eq. 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .read import locate, query_blocks
from .scores import operands

Select = Callable[[Tensor, int], Tensor]
Gather = Callable[[Tensor, Tensor], Tensor]


def select_prototypes(usage: Tensor, num_prototypes: int) -> Tensor:
    """usage [B, N] -> index [B, P], most used first, the older of equals first, NaN last"""
    return torch.sort(-usage, dim=1, stable=True).indices[:, :num_prototypes]


def evict_lfu(usage: Tensor, keep: int) -> Tensor:
    """usage [B, N] -> index [B, keep] of the survivors, ascending; of equals the older goes first"""
    newest_first = torch.sort(-usage.flip(1), dim=1, stable=True).indices[:, :keep]
    return (usage.shape[1] - 1 - newest_first).sort(dim=1).values


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x [B, C, N], index [B, P] -> [B, C, P]"""
    return x.gather(2, index.unsqueeze(1).expand(-1, x.shape[1], -1))


def gather_from(segments: list[Tensor], index: Tensor, gather: Gather = gather_tokens) -> Tensor:
    """segments [B, C, N_i], read as one; index [B, P] -> [B, C, P]"""
    chosen: Tensor | None = None
    for segment, here, local in locate(segments, index):
        part = gather(segment, local)
        chosen = part if chosen is None or not isinstance(here, Tensor) else part.where(here.unsqueeze(1), chosen)
    assert chosen is not None  # the border lets no empty memory through
    return chosen


def consolidate(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    me: list[Tensor] | None,
    mv: list[Tensor],
    usage: Tensor,
    num_prototypes: int,
    select: Select = select_prototypes,
    gather: Gather = gather_tokens,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> pk [B, CK, P], ps [B, 1, P] float32, pv [B, O, CV, P]. The two steps that C++ does better can be passed in."""
    index = select(usage, num_prototypes)
    pk = gather_from(mk, index, gather)
    pe = None if me is None else gather_from(me, index, gather)
    ops = operands(mk, ms, pk, pe)
    dtype = ops.query.dtype
    values = [v.to(dtype).transpose(2, 3) for v in mv]
    # The shrinkage is potentiated as one more value channel, in full precision.
    if ms is None:
        shrinkage = [k.new_ones(k.shape[0], k.shape[2], 1, dtype=dtype) for k in mk]
    else:
        shrinkage = [s.to(dtype).transpose(1, 2) for s in ms]
    pv, ps = [], []
    for a, b in query_blocks(ops):
        parts = ops.scores(a, b).softmax(2).split([k.shape[2] for k in mk], dim=2)
        pv.append(sum((p.unsqueeze(1) @ v for p, v in zip(parts[1:], values[1:])), parts[0].unsqueeze(1) @ values[0]))
        ps.append(sum((p @ s for p, s in zip(parts[1:], shrinkage[1:])), parts[0] @ shrinkage[0]))
    ps_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return pk, torch.cat(ps, 1).transpose(1, 2).to(ps_dtype), torch.cat(pv, 2).transpose(2, 3).to(mv[0].dtype)
