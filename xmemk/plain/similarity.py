"""The similarity of Eq. 2 as a whole."""

from __future__ import annotations

from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .derivatives import differentiable
from .operands import operands
from .read_tensors import ReadTensors


def similarity(memory: MemoryInputs, queries: QueryInputs) -> Tensor:
    """-> [B, N, Q]. Unlike a read, it keeps scores that are NaN or +inf."""
    layout, tensors = ReadTensors.of(memory, queries)

    def scores(*tensors: Tensor | None) -> tuple[Tensor]:
        return (operands(*layout.structs(tensors)).raw_scores().transpose(1, 2),)

    return differentiable(scores, tensors)[0]
