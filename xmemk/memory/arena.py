"""The storage of objects that joined together: preallocated, written in place, never concatenated.

An arena holds tokens in this order: long-term memory, then frames, oldest first (``admit`` can
insert a frame elsewhere). Each token has a key, a shrinkage, a use (the mass it received), the
number of reads at its birth, and a value per object. Tokens of frames also have a selection. All of
it is stored token-major and handed to the stateless functions as views.

An arena knows no rules. It offers steps, and the rules of a memory compose them:

    slot = arena.stage(key, shrinkage, selection, value)  a frame is written to a free slot, unseen
    arena.admit(slot)                                     becomes the last frame; ``at=0`` the first
    arena.release(first, last)                            frames leave: FIFO, or after consolidation
    readout, usage = arena.read(queries, top_k=k)         Eq. 1 over all tokens; records nothing
    arena.record(usage)                                   counts one read and its mass per token
    index = arena.survivors(keep)                         LFU eviction: ``keep`` tokens stay
    prototypes = arena.prototypes(arena.frames[1:6], P)   selection and potentiation (Eq. 3)
    arena.keep(index); arena.remember(prototypes)         eviction, then the new prototypes
    arena.values = arena.without(rows)                    drops the values of some objects

**Compute, then commit.** ``stage``, ``read``, ``survivors``, ``prototypes`` and ``without`` change
nothing that can be seen, and only they can fail. The other steps change positions, and note which
rows move (:mod:`.changes`); ``record`` replaces all use at one moment. A fork shares the storage
and has positions of its own: what is done to it is unseen until it takes the arena's place.

**Batch.** Each batch element selects and evicts for itself: ``index`` is [B, n], and prototypes are
those of each element.

**Permanent frames.** Frames that must stay (the first one, permanent ones) are those that the
caller does not name in ``release`` and ``prototypes``.

**Life.** A token has been part of reads - birth reads. Its life is that number plus 1e-7, so a
token that was never read has usage 0 / 1e-7 = 0. Nothing is counted up per frame.

**Growth.** Frames and long-term tokens have their place from the start (``nbytes`` is fixed). Only
where more frames come than ``Spec.frames``, blocks of frames are added, each twice the last up to
256 MB. Existing blocks stay where they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .bank import Bank, add_block, place
from .changes import commit
from .choice import Recall, after_eviction, can_recall
from .functions import PUBLIC, PublicFunctions
from .graph import Captures, ReadGraph
from .scaled import values_for
from .spec import Spec
from .table import LONG_TERM, Run, Slot, Table
from .values import Values

LIFE_OF_A_NEW_TOKEN = 1e-7


class Prototypes(NamedTuple):
    """The result of a consolidation."""

    key: Tensor  # [B, CK, P]
    shrinkage: Tensor  # [B, 1, P]
    value: Tensor  # [B, O, CV, P]


class Arena:
    """The tokens of some objects; see the head of this file.

    functions: the stateless functions to run on. graphs: captures of reads (:mod:`.graph`) or None.
    """

    choice: Tensor | None = None  # of the last read (:mod:`.choice`); pickles of 0.1 have none

    def __init__(self, spec: Spec, functions: Any = PUBLIC, graphs: Captures | None = None) -> None:
        self.spec = spec
        self.functions = functions
        self.graph = None if graphs is None else ReadGraph(graphs)
        self.table = Table(spec.frame, spec.frames)
        self.reads = 0
        b, device = spec.batch, spec.device
        self.key = Bank(b, (spec.key_channels,), spec.key_dtype, device)
        self.shrinkage = Bank(b, (), spec.number, device)
        self.selection = Bank(b, (spec.key_channels,), spec.key_dtype, device) if spec.has_selection else None
        # float32 would lose the mass of a read once millions of reads are summed.
        self.use = Bank(b, (), torch.float64, device)
        self.birth = Bank(b, (), torch.int64, device)
        self.values = values_for(spec, functions)
        with_long_term = [bank for bank in self.banks.values() if bank is not self.selection]  # prototypes have none
        add_block(with_long_term, spec.long_term)
        add_block([] if self.selection is None else [self.selection], 0)
        add_block(self.banks.values(), spec.frames * spec.frame)

    @property
    def banks(self) -> dict[str, Bank]:
        """All banks by name."""
        named = {"key": self.key, "shrinkage": self.shrinkage, "use": self.use, "birth": self.birth}
        if self.selection is not None:
            named["selection"] = self.selection
        return named | {f"value{i}": bank for i, bank in enumerate(self.values.banks)}

    def fork(self) -> Arena:
        """An arena on the same storage, with positions and counts of its own."""
        twin = copy.copy(self)
        twin.table, twin.values = self.table.fork(), self.values.fork()
        for name in ("key", "shrinkage", "selection", "use", "birth"):
            bank = getattr(self, name)
            setattr(twin, name, None if bank is None else bank.fork())
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes of all banks."""
        return sum(bank.nbytes for bank in self.banks.values())

    @property
    def frames(self) -> list[Slot]:
        """The frames held, in order."""
        return self.table.frames

    @property
    def long_term(self) -> int:
        """Tokens in long-term memory."""
        return self.table.long

    @property
    def total_long_term(self) -> int:
        """Tokens in long-term memory, of all shards where a memory is sharded."""
        return self.long_term

    @property
    def tokens(self) -> int:
        """N, of long-term memory and frames."""
        return self.table.tokens

    # Frames

    def stage(self, key: Tensor, shrinkage: Tensor, selection: Tensor | None, value: Tensor) -> Slot:
        """Writes a frame to a free slot and returns the slot, for :meth:`admit` to make visible.

        key [B, CK, HW], shrinkage [B, 1, HW], selection as key or None, value [B, O, CV, HW], of
        types that convert to the stored ones.
        """
        slot = place(self.table, list(self.banks.values()))
        run = self.table.run(slot)
        with torch.no_grad():
            if self.selection is not None and selection is not None:
                self.selection.write(run, selection.transpose(1, 2))
            self._write(run, key, shrinkage, value)
        return slot

    def admit(self, slot: Slot, at: int | None = None) -> None:
        """Makes a staged frame part of the memory: the last frame, or the ``at``-th."""
        self.frames.insert(len(self.frames) if at is None else at, slot)

    def release(self, first: int, last: int) -> None:
        """Removes frames first to last - 1 and frees their slots."""
        del self.frames[first:last]

    # Reading

    def read(
        self,
        queries: QueryInputs,
        *,
        top_k: int | None,
        return_usage: bool = True,
        backend: str = "auto",
    ) -> tuple[Tensor, Tensor | None]:
        """Eq. 1 over all tokens: readout [B, O, CV, Q], usage [B, N] for :meth:`record` or None."""
        runs = self.table.runs()
        options: dict[str, Any] = {"top_k": top_k, "return_usage": return_usage, "backend": backend}
        if self.graph is not None:
            replayed = self.graph.read(self, runs, queries, **options)
            if replayed is not None:
                return replayed
        keys, recall = self.keys(runs), None
        if can_recall(keys, queries, top_k, backend) and isinstance(self.functions, PublicFunctions):
            recall = Recall(runs, [block.shape[1] for block in self.key.blocks], self.choice, queries.qk.shape[2])
        result = self.values.read(keys, runs, queries, recall=recall, **options)
        self.choice = None if recall is None else recall.choice
        return result

    def keys(self, runs: Sequence[Run]) -> MemoryInputs:
        """Keys [B, CK, n] and shrinkage [B, 1, n] of each run as views, without values."""
        shrinkage = [self.shrinkage.rows(run)[:, None] for run in runs]
        return MemoryInputs([self.key.view(run) for run in runs], shrinkage, [])

    def record(self, usage: Tensor) -> None:
        """Counts one read, in which the tokens, in order, received the mass ``usage`` [B, N]."""
        at = 0
        with torch.no_grad():
            use = self.use.copied()
            for run in self.table.runs():
                if run.block != LONG_TERM or self.spec.count_long_term:
                    use.rows(run).add_(usage[:, at : at + run.tokens])
                at += run.tokens
        commit([(self, {"use": use, "reads": self.reads + 1})])

    def usage(self, runs: Sequence[Run]) -> Tensor:
        """[B, n] mass per read: use "normalized by the duration" in memory (Sec. 2.3)."""
        number = self.spec.number
        parts = [
            (self.use.rows(run) / ((self.reads - self.birth.rows(run)).double() + LIFE_OF_A_NEW_TOKEN)).to(number)
            for run in runs
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def pick(self, bank: Bank, runs: Sequence[Run], index: Tensor) -> Tensor:
        """[B, C, n]: the tokens ``index`` [B, n] of a bank, counted in ``runs`` of one block."""
        position = torch.cat([torch.arange(run.start, run.stop, device=index.device) for run in runs])
        rows = position[index].unsqueeze(2).expand(-1, -1, *bank.channels)
        return bank.blocks[runs[0].block].gather(1, rows).transpose(1, 2)

    # Long-term memory

    def prototypes(self, frames: Sequence[Slot], count: int, *, backend: str = "auto") -> Prototypes:
        """The ``count`` most used tokens of some frames, staged ones included.

        They are potentiated by Eq. 3 over all tokens of these frames.
        """
        runs = self.table.runs(frames)
        me = None if self.selection is None else [self.selection.view(run) for run in runs]
        with torch.no_grad():
            usage = self.usage(runs)
            return Prototypes(*self.values.consolidate(self.keys(runs), me, runs, usage, count, backend=backend))

    def survivors(self, keep: int, *, backend: str = "auto") -> Tensor:
        """The long-term tokens [B, keep] int64 that stay after LFU eviction, ascending."""
        index: Tensor = self.functions.evict_lfu(self.long_term_usage(), keep, backend=backend)
        return index

    def long_term_usage(self) -> Tensor:
        """[B, L] mass per read of long-term tokens. RuntimeError where usage is not counted."""
        if not self.spec.count_long_term:
            raise RuntimeError(
                "long-term memory is full and usage was not counted, so nothing can be evicted: "
                "set enable_long_term_count_usage=True or a larger max_long_term_elements"
            )
        with torch.no_grad():
            return self.usage([Run(LONG_TERM, 0, self.long_term)])

    def keep(self, index: Tensor, *, ascending: bool = True) -> None:
        """Keeps these long-term tokens [B, n], in this order.

        Ascending order takes less scratch.
        """
        self.choice = after_eviction(self.choice, index, self.key.blocks[LONG_TERM].shape[1])
        for bank in self.banks.values():
            bank.keep(index, ascending)
        self.table.long = index.shape[1]

    def remember(self, prototypes: Prototypes) -> None:
        """Appends prototypes to long-term memory. ValueError where there is no room for them."""
        count = prototypes.key.shape[2]
        if self.long_term + count > self.spec.long_term:
            raise ValueError(f"prototypes: wanted at most {self.spec.long_term - self.long_term}, got {count}")
        run = Run(LONG_TERM, self.long_term, self.long_term + count)
        with torch.no_grad():
            self._write(run, *prototypes)
        self.table.long += count

    def _write(self, run: Run, key: Tensor, shrinkage: Tensor, value: Tensor) -> None:
        """Writes new tokens to a run that no token is in."""
        self.key.write(run, key.transpose(1, 2))
        self.shrinkage.write(run, shrinkage[:, 0])
        row = key.new_zeros(1, dtype=torch.int64).expand(self.spec.batch, run.tokens)
        self.use.write(run, row)
        self.birth.write(run, row + self.reads)
        self.values.write(run, value)

    # Objects

    def without(self, rows: Sequence[int]) -> Values:
        """The values of all objects but these rows, copied so that the old banks can be freed."""
        stay = [row for row in range(self.values.spec.objects) if row not in rows]
        with torch.no_grad():
            return self.values.of(stay, self.table.runs())
