"""The values of some objects, and what is done with them: written, read, averaged into prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from .bank import Bank
from .spec import Spec
from .table import Run


class Values:
    """Banks of values [B, tokens, O, CV], in ``spec.stored_value_dtype``, or as they are given where that is None."""

    def __init__(self, spec: Spec, functions: Any) -> None:
        self.spec = spec
        self.functions = functions
        self.bank = Bank(
            spec.batch, (spec.objects, spec.value_channels), spec.stored_value_dtype or spec.value_dtype, spec.device
        )
        self.banks = [self.bank]

    def write(self, run: Run, value: Tensor) -> None:
        """value [B, O, CV, n] becomes that of the run's tokens."""
        self.bank.rows(run).copy_(value.permute(0, 3, 1, 2))

    def segments(self, runs: Sequence[Run]) -> list[Tensor]:
        """[B, O, CV, n] of each run, views."""
        return [self.bank.view(run) for run in runs]

    def read(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        runs: Sequence[Run],
        qk: Tensor,
        qe: Tensor | None,
        *,
        top_k: int | None,
        return_usage: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """Eq. 1 over the tokens of ``runs``, whose keys and shrinkage are mk and ms: readout [B, O, CV, Q], usage."""
        mv = self.segments(runs)
        if return_usage:
            readout, usage = self.functions.memory_read(
                mk, ms, mv, qk, qe, top_k=top_k, return_usage=True, backend=backend
            )
            return readout.to(self.spec.value_dtype), usage
        return self.functions.memory_read(mk, ms, mv, qk, qe, top_k=top_k, backend=backend).to(
            self.spec.value_dtype
        ), None

    def consolidate(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        me: list[Tensor] | None,
        runs: Sequence[Run],
        usage: Tensor,
        count: int,
        *,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens of ``runs``: pk [B, CK, P], ps [B, 1, P], pv [B, O, CV, P]; see :func:`xmemk.consolidate`."""
        prototypes: tuple[Tensor, Tensor, Tensor] = self.functions.consolidate(
            mk, ms, me, self.segments(runs), usage, count, backend=backend
        )
        return prototypes

    def keep(self, index: Tensor, scratch: Tensor, ascending: bool) -> None:
        """See :meth:`.bank.Bank.keep`."""
        for bank in self.banks:
            bank.keep(index, scratch, ascending)

    def of(self, rows: Sequence[int], runs: Sequence[Run]) -> Values:
        """Banks of their own for some of the objects, with their values of ``runs``."""
        values = type(self)(replace(self.spec, objects=len(rows)), self.functions)
        for new, old in zip(values.banks, self.banks):
            new.blocks = [new.empty(block.shape[1]) for block in old.blocks]
            for run in runs:
                for i, row in enumerate(rows):
                    new.rows(run)[:, :, i].copy_(old.rows(run)[:, :, row])
        return values
