"""What the demo measures: each memory read, the upkeep, and the totals of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class ReadInputs(NamedTuple):
    """What a read was given: mk [1, CK, N], ms [1, 1, N] or None, qk and qe [1, CK, Q]."""

    mk: Tensor
    ms: Tensor | None
    qk: Tensor
    qe: Tensor
    top_k: int


class ConsolidationInputs(NamedTuple):
    """What a consolidation was given: the candidates' mk [1, CK, N] and usage [1, N]."""

    mk: Tensor
    usage: Tensor
    num_prototypes: int


@dataclass
class ReadRecord:
    """One memory read.

    tokens, queries: its size. seconds, peak_bytes: its cost, and the same of the original's
    formulation where that was done, too. error: the largest error of the checked queries against
    float64. share: the largest share of the allowed error.
    """

    tokens: int
    queries: int
    seconds: float
    error: float
    share: float
    peak_bytes: int | None = None
    original_seconds: float | None = None
    original_error: float | None = None
    original_peak_bytes: int | None = None


@dataclass
class UpkeepRecord:
    """All calls of one function of the memory's upkeep, on one backend.

    error: the largest difference from the oracle. share: the largest share of the allowed error.
    """

    backend: str
    calls: int = 0
    seconds: float = 0.0
    error: float = 0.0
    share: float = 0.0


@dataclass
class ReadTotals:
    """The reads of a run together.

    compared: the number of reads that the original's formulation did, too. The fields of the
    original, and seconds_compared, are of these reads alone.
    """

    seconds: float
    compared: int
    seconds_compared: float
    original_seconds: float
    error: float
    share: float
    original_error: float
    peak_bytes: int | None
    original_peak_bytes: int | None
    reads: list[ReadRecord] = field(repr=False, default_factory=list)

    @property
    def original_whole(self) -> float | None:
        """Estimated seconds of all reads by the original's formulation, in proportion to size."""
        measured = sum(r.tokens * r.queries for r in self.reads if r.original_seconds is not None)
        size = sum(r.tokens * r.queries for r in self.reads)
        return self.original_seconds * size / measured if measured else None

    @property
    def speedup(self) -> float | None:
        """How many times as long the original's formulation takes for the compared reads."""
        return self.original_seconds / self.seconds_compared if self.compared else None


def totals(reads: list[ReadRecord]) -> ReadTotals:
    """The totals of a run's reads."""
    compared = [r for r in reads if r.original_seconds is not None]
    return ReadTotals(
        seconds=sum(r.seconds for r in reads),
        compared=len(compared),
        seconds_compared=sum(r.seconds for r in compared),
        original_seconds=sum(r.original_seconds or 0.0 for r in compared),
        error=max((r.error for r in reads), default=0.0),
        share=max((r.share for r in reads), default=0.0),
        original_error=max((r.original_error or 0.0 for r in compared), default=0.0),
        peak_bytes=_largest([r.peak_bytes for r in reads]),
        original_peak_bytes=_largest([r.original_peak_bytes for r in compared]),
        reads=reads,
    )


def _largest(values: list[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return max(known) if known else None
