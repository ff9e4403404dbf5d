"""The values of some objects: written, read, and averaged into prototypes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .bank import Bank
from .spec import Spec
from .table import Run


class Values:
    """A bank of values [B, tokens, O, CV] in the type that ``spec`` says."""

    def __init__(self, spec: Spec, functions: Any) -> None:
        self.spec = spec
        self.functions = functions
        self.bank = Bank(
            spec.batch, (spec.objects, spec.value_channels), spec.stored_value_dtype or spec.value_dtype, spec.device
        )
        self.banks = [self.bank]

    def write(self, run: Run, value: Tensor) -> None:
        """Stores value [B, O, CV, n] for the tokens of the run."""
        self.bank.write(run, value.permute(0, 3, 1, 2))

    def segments(self, runs: Sequence[Run]) -> list[Tensor]:
        """[B, O, CV, n] of each run, as views."""
        return [self.bank.view(run) for run in runs]

    def read(
        self,
        keys: MemoryInputs,
        runs: Sequence[Run],
        queries: QueryInputs,
        *,
        top_k: int | None,
        return_usage: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor | None]:
        """Eq. 1 over the tokens of ``runs``: readout [B, O, CV, Q], and usage [B, N] or None.

        keys: keys and shrinkage of these tokens, a segment per run.
        """
        memory = keys._replace(mv=self.segments(runs))
        options: dict[str, Any] = {"return_usage": True} if return_usage else {}
        result = self.functions.memory_read(*memory, *queries, top_k=top_k, backend=backend, **options)
        readout, usage = result if return_usage else (result, None)
        return readout.to(self.spec.value_dtype), usage

    def consolidate(
        self,
        keys: MemoryInputs,
        me: list[Tensor] | None,
        runs: Sequence[Run],
        usage: Tensor,
        count: int,
        *,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes pk [B, CK, P], ps [B, 1, P], pv [B, O, CV, P] of the tokens of ``runs``.

        See :func:`xmemk.consolidate`.
        """
        mk, ms, _ = keys
        prototypes: tuple[Tensor, Tensor, Tensor] = self.functions.consolidate(
            mk, ms, me, self.segments(runs), usage, count, backend=backend
        )
        return prototypes

    def keep(self, index: Tensor, ascending: bool) -> None:
        """See :meth:`.bank.Bank.keep`."""
        for bank in self.banks:
            bank.keep(index, ascending)

    def fork(self) -> Values:
        """See :meth:`.bank.Bank.fork`."""
        twin = copy.copy(self)
        twin.banks = [bank.fork() for bank in self.banks]
        twin.bank = twin.banks[0]
        return twin

    def of(self, rows: Sequence[int], runs: Sequence[Run]) -> Values:
        """The values of some of the objects at ``runs``, copied into banks of their own."""
        values = type(self)(replace(self.spec, objects=len(rows)), self.functions)
        for new, old in zip(values.banks, self.banks):
            new.blocks = [new.empty(block.shape[1]) for block in old.blocks]
            for run in runs:
                for i, row in enumerate(rows):
                    new.rows(run)[:, :, i].copy_(old.rows(run)[:, :, row])
        return values
