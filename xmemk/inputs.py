"""The arguments of a memory read as two structs, for every layer below the public functions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MemoryInputs(NamedTuple):
    """The memory of a read as equally long lists of segments.

    mk: keys [B, CK, N_i]. ms: shrinkage [B, 1, N_i], or None for 1. mv: values [B, O, CV, N_i]; an
    empty list where an op reads no values (affinity, similarity).
    """

    mk: list[Tensor]
    ms: list[Tensor] | None
    mv: list[Tensor]

    @property
    def tokens(self) -> int:
        """N, of all segments."""
        return sum(k.shape[2] for k in self.mk)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All segments: keys, shrinkage where there is one, values."""
        return (*self.mk, *(self.ms or ()), *self.mv)


class QueryInputs(NamedTuple):
    """The queries of a read. qk: keys [B, CK, Q]. qe: selection [B, CK, Q], or None for 1."""

    qk: Tensor
    qe: Tensor | None
