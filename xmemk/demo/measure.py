"""The public functions as the memory calls them, timed, and checked against the float64 oracle on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import api, reference
from ..measure.peak import Peak
from ..testing import Comparison, Inputs, compare_close, compare_consolidate, compare_read
from . import original


@dataclass
class Read:
    """One memory read: sizes, seconds; over the queries that were looked at, the largest error against float64 and the
    largest share of what is allowed."""

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
class Upkeep:
    """Calls of one function of the upkeep: seconds, the largest difference from the oracle and share of what is
    allowed.
    """

    backend: str
    calls: int = 0
    seconds: float = 0.0
    error: float = 0.0
    share: float = 0.0


class MeasuredOps:
    """The functions of ``xmemk.Memory`` in the demo: on the best backend of the machine, or the one asked for.

    Every read is checked on ``checked_queries`` of its queries, every other call whole; RuntimeError where the allowed
    error is passed. Every ``original_every``-th read is done by the original's formulation, too, right after (0: none).
    """

    def __init__(self, backend: str = "auto", original_every: int = 8, checked_queries: int = 48) -> None:
        self.backend = backend
        self.reads: list[Read] = []
        self.upkeep: dict[str, Upkeep] = {}
        self.read_backend = ""
        self.read_seconds = 0.0
        self.check_seconds = 0.0  # spent on oracle and original, which are no part of the job
        self._original_every = original_every
        self.checked_queries = checked_queries
        self._generator = torch.Generator().manual_seed(0)

    def memory_read(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        mv: list[Tensor],
        qk: Tensor,
        qe: Tensor,
        *,
        top_k: int,
        return_usage: bool = False,
        **_: str,
    ) -> Any:
        if not self.read_backend:
            self.read_backend = self._chosen(api.memory_read, mk, ms, mv, qk, qe, top_k=top_k)
        beside = self._original_every > 0 and len(self.reads) % self._original_every == self._original_every // 2
        with Peak(qk.device) as peak:
            start = time.perf_counter()
            readout, usage = api.memory_read(mk, ms, mv, qk, qe, top_k=top_k, return_usage=True, backend=self.backend)
            _wait(qk.device)
            seconds = time.perf_counter() - start
        checking = time.perf_counter()
        picked = torch.randperm(qk.shape[2], generator=self._generator)[: self.checked_queries].to(qk.device)
        inputs = Inputs(
            torch.cat(mk, 2), torch.cat(ms, 2), torch.cat(mv, 3), qk[..., picked], qe[..., picked], mk[0], ms[0][:, 0]
        )
        compared = compare_read(inputs, readout[..., picked], top_k=top_k)
        read = Read(inputs.mk.shape[2], qk.shape[2], seconds, compared.error, compared.share, peak.bytes)
        self.reads.append(read)
        self.read_seconds += seconds
        if not compared.passed:
            raise RuntimeError(f"backend {self.read_backend!r} fails the oracle in read {len(self.reads)}: {compared}")
        if beside:
            self._read_original(read, inputs, mk, ms, mv, qk, qe, top_k, picked)
        self.check_seconds += time.perf_counter() - checking
        return (readout, usage) if return_usage else readout

    def _read_original(
        self,
        read: Read,
        inputs: Inputs,
        mk: list[Tensor],
        ms: list[Tensor],
        mv: list[Tensor],
        qk: Tensor,
        qe: Tensor,
        top_k: int,
        picked: Tensor,
    ) -> None:
        with Peak(qk.device) as peak:
            start = time.perf_counter()
            readout, _ = original.memory_read(mk, ms, mv, qk, qe, top_k=top_k)
            _wait(qk.device)
            read.original_seconds = time.perf_counter() - start
        read.original_peak_bytes = peak.bytes
        read.original_error = compare_read(inputs, readout[..., picked], top_k=top_k).error

    def evict_lfu(self, usage: Tensor, keep: int, **_: str) -> Tensor:
        index, record = self._timed("evict_lfu", usage, keep)
        start = time.perf_counter()
        self._judge(record, compare_close("evict_lfu", index, reference.evict_lfu(usage, keep), 0.0))
        self.check_seconds += time.perf_counter() - start
        survivors: Tensor = index
        return survivors

    def consolidate(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        me: list[Tensor],
        mv: list[Tensor],
        usage: Tensor,
        num_prototypes: int,
        **_: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result, record = self._timed("consolidate", mk, ms, me, mv, usage, num_prototypes)
        start = time.perf_counter()
        pk, ps, pv = result
        key, selection = torch.cat(mk, 2), torch.cat(me, 2)
        inputs = Inputs(key, torch.cat(ms, 2), torch.cat(mv, 3), key, selection, selection, usage)
        self._judge(record, compare_consolidate(inputs, num_prototypes, pk, ps, pv))
        self.check_seconds += time.perf_counter() - start
        return pk, ps, pv

    def _timed(self, op: str, *arguments: Any) -> tuple[Any, Upkeep]:
        function: Callable[..., Any] = getattr(api, op)
        record = self.upkeep.setdefault(op, Upkeep(self._chosen(function, *arguments)))
        start = time.perf_counter()
        result = function(*arguments, backend=self._upkeep_backend(function, *arguments))
        _wait(arguments[-2].device)  # usage
        record.seconds += time.perf_counter() - start
        record.calls += 1
        return result, record

    def _judge(self, record: Upkeep, compared: Comparison) -> None:
        record.error, record.share = max(record.error, compared.error), max(record.share, compared.share)
        if not compared.passed:
            raise RuntimeError(f"backend {record.backend!r} fails the oracle in {compared}")

    def _upkeep_backend(self, function: Callable[..., Any], *arguments: Any) -> str:
        # A backend that only reads leaves the upkeep to the best one there is.
        said = api.explain(function, *arguments, backend=self.backend)
        return self.backend if said.chosen else "auto"

    def _chosen(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        backend = self.backend if function is api.memory_read else self._upkeep_backend(function, *arguments)
        return api.explain(function, *arguments, backend=backend, **options).chosen or backend


@dataclass
class Totals:
    """The reads of a run put together; the figures for the original only over the reads it did, too."""

    seconds: float
    compared: int
    seconds_compared: float
    original_seconds: float
    error: float
    share: float
    original_error: float
    peak_bytes: int | None
    original_peak_bytes: int | None
    reads: list[Read] = field(repr=False, default_factory=list)

    @property
    def original_whole(self) -> float | None:
        """Seconds that all reads would take the original's formulation: those it did, in proportion to their size."""
        done = sum(r.tokens * r.queries for r in self.reads if r.original_seconds is not None)
        size = sum(r.tokens * r.queries for r in self.reads)
        return self.original_seconds * size / done if done else None

    @property
    def speedup(self) -> float | None:
        return self.original_seconds / self.seconds_compared if self.compared else None


def totals(reads: list[Read]) -> Totals:
    beside = [r for r in reads if r.original_seconds is not None]
    return Totals(
        seconds=sum(r.seconds for r in reads),
        compared=len(beside),
        seconds_compared=sum(r.seconds for r in beside),
        original_seconds=sum(r.original_seconds or 0.0 for r in beside),
        error=max((r.error for r in reads), default=0.0),
        share=max((r.share for r in reads), default=0.0),
        original_error=max((r.original_error or 0.0 for r in beside), default=0.0),
        peak_bytes=_largest([r.peak_bytes for r in reads]),
        original_peak_bytes=_largest([r.original_peak_bytes for r in beside]),
        reads=reads,
    )


def _largest(values: list[int | None]) -> int | None:
    known = [v for v in values if v is not None]
    return max(known) if known else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
