"""potentiate (Eq. 3): a dense read of values and shrinkage by prototypes."""

from __future__ import annotations

from torch import Tensor

from ...inputs import MemoryInputs, QueryInputs
from .memory_read import read


def potentiate(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    """Prototypes [B, CK, P] and their selection -> ps [B, 1, P] float32, pv [B, O, CV, P]."""
    pv, _, ps = read(memory, prototypes, return_usage=False, return_shrinkage=True)
    assert ps is not None
    return ps, pv
