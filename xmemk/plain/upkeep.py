"""Prototype selection, consolidation and eviction (Sec. 2.3, Eq. 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .read import query_blocks
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


def consolidate(
    mk: Tensor,
    ms: Tensor | None,
    me: Tensor | None,
    mv: Tensor,
    usage: Tensor,
    num_prototypes: int,
    select: Select = select_prototypes,
    gather: Gather = gather_tokens,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> pk [B, CK, P], ps [B, 1, P] float32, pv [B, O, CV, P]. The two steps that C++ does better can be passed in."""
    index = select(usage, num_prototypes)
    pk = gather(mk, index)
    pe = None if me is None else gather(me, index)
    ops = operands([mk], None if ms is None else [ms], pk, pe)
    values = mv.to(ops.query.dtype).transpose(2, 3)
    # The shrinkage is potentiated as one more value channel, in full precision.
    shrinkage = ops.memory.new_ones(mk.shape[0], mk.shape[2], 1) if ms is None else ms.to(values.dtype).transpose(1, 2)
    pv, ps = [], []
    for a, b in query_blocks(ops):
        affinity = ops.scores(a, b).softmax(2)
        pv.append(affinity.unsqueeze(1) @ values)
        ps.append(affinity @ shrinkage)
    ps_dtype = torch.float64 if ops.query.dtype == torch.float64 else torch.float32
    return pk, torch.cat(ps, 1).transpose(1, 2).to(ps_dtype), torch.cat(pv, 2).transpose(2, 3).to(mv.dtype)
