"""The functions that the demo's memory calls, timed and checked against the float64 oracle."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import api, reference
from ..measure.peak import Peak
from ..testing import Comparison, Inputs, compare_close, compare_consolidate, compare_read
from . import original
from .records import ConsolidationInputs, ReadInputs, ReadRecord, UpkeepRecord


class CheckedFunctions:
    """The functions of the demo's :class:`xmemk.Memory`, each call timed and checked.

    backend: of the reads; "auto" takes the best of the machine.
    original_every: every so many reads, the original's formulation does the same read; 0 for none.
    checked_queries: queries of each read that the oracle checks. Other calls are checked whole.

    The methods raise RuntimeError where an error is larger than allowed.
    """

    def __init__(self, backend: str = "auto", original_every: int = 8, checked_queries: int = 48) -> None:
        self.backend = backend
        self.reads: list[ReadRecord] = []
        self.upkeep: dict[str, UpkeepRecord] = {}
        self.last_read: ReadInputs | None = None
        self.last_consolidation: ConsolidationInputs | None = None
        self.read_backend = ""
        self.read_seconds = 0.0
        self.check_seconds = 0.0  # of the oracle and the original, which are not part of the job
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
        self.last_read = ReadInputs(inputs.mk, inputs.ms, qk, qe, top_k)
        compared = compare_read(inputs, readout[..., picked], top_k=top_k)
        read = ReadRecord(inputs.mk.shape[2], qk.shape[2], seconds, compared.error, compared.share, peak.bytes)
        self.reads.append(read)
        self.read_seconds += seconds
        if not compared.passed:
            raise RuntimeError(f"backend {self.read_backend!r} fails the oracle in read {len(self.reads)}: {compared}")
        if beside:
            self._read_original(read, (mk, ms, mv, qk, qe), inputs, picked, top_k)
        self.check_seconds += time.perf_counter() - checking
        return (readout, usage) if return_usage else readout

    def _read_original(
        self,
        read: ReadRecord,
        arguments: tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor],
        inputs: Inputs,
        picked: Tensor,
        top_k: int,
    ) -> None:
        """Adds the original's formulation of the same read to its record."""
        with Peak(picked.device) as peak:
            start = time.perf_counter()
            readout, _ = original.memory_read(*arguments, top_k=top_k)
            _wait(picked.device)
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
        self.last_consolidation = ConsolidationInputs(key, usage.clone(), num_prototypes)
        self._judge(record, compare_consolidate(inputs, num_prototypes, pk, ps, pv))
        self.check_seconds += time.perf_counter() - start
        return pk, ps, pv

    def _timed(self, op: str, *arguments: Any) -> tuple[Any, UpkeepRecord]:
        function: Callable[..., Any] = getattr(api, op)
        record = self.upkeep.setdefault(op, UpkeepRecord(self._chosen(function, *arguments)))
        start = time.perf_counter()
        result = function(*arguments, backend=self._upkeep_backend(function, *arguments))
        _wait(arguments[-2].device)  # usage
        record.seconds += time.perf_counter() - start
        record.calls += 1
        return result, record

    def _judge(self, record: UpkeepRecord, compared: Comparison) -> None:
        record.error, record.share = max(record.error, compared.error), max(record.share, compared.share)
        if not compared.passed:
            raise RuntimeError(f"backend {record.backend!r} fails the oracle in {compared}")

    def _upkeep_backend(self, function: Callable[..., Any], *arguments: Any) -> str:
        # A backend without a kernel for this function leaves it to the best one of the machine.
        explanation = api.explain(function, *arguments, backend=self.backend)
        return self.backend if explanation.chosen else "auto"

    def _chosen(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        backend = self.backend if function is api.memory_read else self._upkeep_backend(function, *arguments)
        return api.explain(function, *arguments, backend=backend, **options).chosen or backend


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
