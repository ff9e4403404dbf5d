"""Memory consolidation (Sec. 2.3): selection, gathering and potentiation, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .gather_tokens import gather_tokens
from .potentiate import potentiate
from .select_prototypes import select_prototypes
from .tokens import locate

Select = Callable[[Tensor, int], Tensor]
Gather = Callable[[Tensor, Tensor], Tensor]
Potentiate = Callable[[MemoryInputs, QueryInputs], tuple[Tensor, Tensor]]


def consolidate(
    memory: MemoryInputs,
    selection: list[Tensor] | None,
    usage: Tensor,
    num_prototypes: int,
    select: Select = select_prototypes,
    gather: Gather = gather_tokens,
    potentiate: Potentiate = potentiate,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> pk [B, CK, P], ps [B, 1, P], pv [B, O, CV, P]. Each step may be another backend's."""
    index = select(usage, num_prototypes)
    pk = _gather_from(memory.mk, index, gather)
    pe = None if selection is None else _gather_from(selection, index, gather)
    return pk, *potentiate(memory, QueryInputs(pk, pe))


def _gather_from(segments: list[Tensor], index: Tensor, gather: Gather) -> Tensor:
    """segments [B, C, N_i], read as one; index [B, P] -> [B, C, P]"""
    chosen: Tensor | None = None
    for segment, here, local in locate(segments, index):
        part = gather(segment, local)
        chosen = part if chosen is None or not isinstance(here, Tensor) else part.where(here.unsqueeze(1), chosen)
    assert chosen is not None  # the border lets no empty memory through
    return chosen
