"""The tensors of a read in one row, as autograd takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs


class ReadTensors(NamedTuple):
    """Where in the row what stands: mk, ms, mv of every segment, qk, qe."""

    segments: int
    shrinkage: bool
    values: bool

    @staticmethod
    def of(memory: MemoryInputs, queries: QueryInputs) -> tuple[ReadTensors, tuple[Tensor | None, ...]]:
        layout = ReadTensors(len(memory.mk), memory.ms is not None, bool(memory.mv))
        return layout, (*memory.tensors, *queries)

    def structs(self, tensors: Sequence[Tensor | None]) -> tuple[MemoryInputs, QueryInputs]:
        n = self.segments
        lists = [list(tensors[i : i + n]) for i in range(0, len(tensors) - 2, n)]
        mk, ms = lists[0], lists[1] if self.shrinkage else None
        return MemoryInputs(mk, ms, lists[-1] if self.values else []), QueryInputs(*tensors[-2:])  # type: ignore[arg-type]
