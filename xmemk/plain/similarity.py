"""The similarity of Eq. 2 as a whole."""

from __future__ import annotations

from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .operands import operands


def similarity(memory: MemoryInputs, queries: QueryInputs) -> Tensor:
    """-> [B, N, Q]. Unlike a read, it keeps scores that are NaN or +inf."""
    sides = operands(memory, queries)
    return (sides.query @ sides.memory).transpose(1, 2)
