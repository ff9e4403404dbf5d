"""Groups of objects over shared keys, as the released code keeps them: ``groups="xmem"``.

The first group and the keys are an arena. A later group has values alone, in a table of its own.
Its V values belong to the *last* V tokens: last of long-term memory, last of working memory. For a
read, its runs and those of the keys are therefore cut at each other's ends.
:mod:`xmemk.reference.groups_xmem` states the rules and which of them are defects. They are the same
here, to the letter.

How many tokens survive an eviction, and which prototypes a later group has, depends on the numbers.
On a GPU these steps wait for the device, once per consolidation.

``add`` and ``record`` are called on a fork, which then takes the groups' place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..inputs import QueryInputs
from .arena import Arena, Prototypes
from .bank import add_block, place
from .rules import FrameTokens, MemoryRules, objects_of
from .scaled import values_for
from .spec import Spec
from .table import LONG_TERM, Run, Slot, Table, last, side_by_side


class LateGroup:
    """The values of a group that joined after the first. ``spec`` replaces that of the rules."""

    def __init__(self, rules: MemoryRules, objects: tuple[int, ...], spec: Spec | None = None) -> None:
        spec = spec or rules.spec(len(objects))
        self.objects = objects
        self.table = Table(spec.frame, spec.frames)
        self.values = values_for(spec, rules.functions)
        add_block(self.values.banks, spec.long_term)
        add_block(self.values.banks, spec.frames * spec.frame)

    def fork(self) -> LateGroup:
        """A group on the same storage; see :meth:`.arena.Arena.fork`."""
        twin = copy.copy(self)
        twin.table, twin.values = self.table.fork(), self.values.fork()
        return twin

    def stage(self, value: Tensor) -> Slot:
        """As :meth:`Arena.stage`."""
        slot = place(self.table, self.values.banks)
        with torch.no_grad():
            self.values.write(self.table.run(slot), value)
        return slot

    def remember(self, value: Tensor) -> None:
        """As :meth:`Arena.remember`."""
        run = Run(LONG_TERM, self.table.long, self.table.long + value.shape[3])
        with torch.no_grad():
            self.values.write(run, value)
        self.table.long = run.stop


@dataclass
class SharedChange:
    """What a memory frame does, computed before rows move. Lists have an entry per later group."""

    slot: Slot
    late_slots: list[Slot]
    survivors: Tensor | None = None  # [1, n]
    late_survivors: list[Tensor] = field(default_factory=list)
    prototypes: Prototypes | None = None
    late_values: list[Tensor | None] = field(default_factory=list)  # [1, O, CV, valid], or None


class SharedGroups:
    """Working and long-term memory with shared keys.

    The batch is 1, because batch elements would lack different values.
    """

    def __init__(self, rules: MemoryRules) -> None:
        self.rules = rules
        self.first: tuple[int, ...] = ()
        self.arena: Arena | None = None
        self.late: list[LateGroup] = []
        self.consolidations = 0
        self.evictions = 0

    def fork(self) -> SharedGroups:
        """Groups on the same storage, whose changes are unseen here."""
        twin = copy.copy(self)
        twin.arena = None if self.arena is None else self.arena.fork()
        twin.late = [group.fork() for group in self.late]
        return twin

    @property
    def objects(self) -> tuple[int, ...]:
        return self.first + tuple(label for group in self.late for label in group.objects)

    @property
    def working_size(self) -> int:
        return 0 if self.arena is None else self.arena.tokens - self.arena.long_term

    @property
    def long_term_size(self) -> int:
        return 0 if self.arena is None else self.arena.long_term

    @property
    def nbytes(self) -> int:
        own = 0 if self.arena is None else self.arena.nbytes
        return own + sum(bank.nbytes for group in self.late for bank in group.values.banks)

    def add(self, frame: FrameTokens, value: Tensor, objects: tuple[int, ...]) -> None:
        """Adds a memory frame. Objects that join now become a group.

        ValueError for labels out of ascending order.
        """
        row = {label: i for i, label in enumerate(objects)}
        known = set(self.objects)
        new = tuple(label for label in objects if label not in known)
        in_order = self.objects + new
        if in_order != tuple(sorted(in_order)):
            raise ValueError(
                'objects: wanted new labels in ascending order and above all earlier ones (groups="xmem"), '
                f"got {list(new)} after {list(self.objects)}"
            )

        def values_of(labels: Sequence[int]) -> Tensor:
            return objects_of(value, [row[label] for label in labels])

        if self.arena is None:
            self.first = new
            self.arena = Arena(self.rules.spec(len(new)), self.rules.functions, self.rules.graphs)
        elif new:
            self.late.append(LateGroup(self.rules, new))
        arena, late = self.arena, self.late
        slot = arena.stage(*frame, values_of(self.first))
        change = SharedChange(slot, [group.stage(values_of(group.objects)) for group in late])
        if self.rules.is_full(len(arena.frames) + 1):
            self._evict(arena, late, change)
            self._consolidate(arena, late, change)
        self._apply(arena, change)

    def read(self, queries: QueryInputs) -> tuple[Tensor, list[Tensor | None]]:
        """The readout [1, O, CV, Q] of all groups; the first group's usage for :meth:`record`."""
        assert self.arena is not None
        arena, options = self.arena, self.rules.read_options
        readout, usage = arena.read(queries, **options)
        readouts = [readout]
        for group in self.late:
            table = group.table
            working = len(table.frames) * table.frame
            of_keys = last([Run(LONG_TERM, 0, arena.long_term)], table.long)
            of_keys += last(arena.table.runs(arena.frames), working)
            of_keys, of_values = side_by_side(of_keys, table.runs())
            readout, _ = group.values.read(
                arena.keys(of_keys), of_values, queries, **{**options, "return_usage": False}
            )
            readouts.append(readout)
        return readouts[0] if len(readouts) == 1 else torch.cat(readouts, 1), [usage]

    def record(self, usages: Sequence[Tensor | None]) -> None:
        """Counts a read with the mass that the tokens received."""
        for usage in usages:
            if usage is not None and self.arena is not None:
                self.arena.record(usage)

    def remove(self, leaving: set[int]) -> None:
        """RuntimeError: all groups share the usage and prototypes of the first."""
        raise RuntimeError(
            f'objects {sorted(leaving)} cannot leave: with groups="xmem" all groups share the keys, usage and '
            'prototypes of the first; use groups="exact"'
        )

    def _evict(self, arena: Arena, late: Sequence[LateGroup], change: SharedChange) -> None:
        """Keeps only tokens with usage strictly above that of the last token to go.

        Where all usage is equal, none stays.
        """
        surplus = arena.long_term - self.rules.long_term_before_prototypes
        if surplus <= 0:
            return
        usage = arena.long_term_usage()[0]
        survives = usage > usage.sort().values[surplus - 1]  # NaN is above nothing
        change.survivors = survives.nonzero().T
        change.late_survivors = [survives[survives.shape[0] - g.table.long :].nonzero().T for g in late]

    def _consolidate(self, arena: Arena, late: Sequence[LateGroup], change: SharedChange) -> None:
        """Prototypes by the first group's usage, potentiated (Eq. 3) over each group's values."""
        rules, backend = self.rules, self.rules.backend
        frames = [*arena.frames, change.slot]
        candidates = frames[rules.candidates(len(frames))]
        count = rules.prototypes(len(candidates))
        change.prototypes = arena.prototypes(candidates, count, backend=backend)
        if not late:
            return
        runs = arena.table.runs(candidates)
        index = rules.functions.select_prototypes(arena.usage(runs), count, backend=backend)
        pe = None if arena.selection is None else arena.pick(arena.selection, runs, index)
        for group, slot in zip(late, change.late_slots):
            own = [*group.table.frames, slot]
            mine = self._contribution(own, len(frames))
            tokens = len(mine) * rules.layout.frame
            valid = (index[0] >= len(candidates) * rules.layout.frame - tokens).nonzero()[:, 0]
            if valid.shape[0] == 0:
                change.late_values.append(None)
                continue
            of_keys, of_values = side_by_side(last(runs, tokens), group.table.runs(mine))
            qk = change.prototypes.key.index_select(2, valid)
            queries = QueryInputs(qk, None if pe is None else pe.index_select(2, valid))
            with torch.no_grad():
                value, _ = group.values.read(
                    arena.keys(of_keys), of_values, queries, top_k=None, return_usage=False, backend=backend
                )
            change.late_values.append(value)

    def _contribution(self, frames: list[Slot], working: int) -> list[Slot]:
        """The candidates of a group that has values of ``frames``.

        working: number of frames that have keys.
        """
        if len(frames) == working or len(frames) > self._one_above_minimum:
            return frames[self.rules.candidates(len(frames))]
        return []

    @property
    def _one_above_minimum(self) -> int:
        return self.rules.config.min_mid_term_frames + 1

    def _apply(self, arena: Arena, change: SharedChange) -> None:
        if change.survivors is not None:
            arena.keep(change.survivors)
            for group, survivors in zip(self.late, change.late_survivors):
                group.values.keep(survivors, True)
                group.table.long = survivors.shape[1]
            self.evictions += 1
        arena.admit(change.slot)
        for group, slot in zip(self.late, change.late_slots):
            group.table.frames.append(slot)
        if change.prototypes is None:
            return
        arena.remember(change.prototypes)
        candidates = self.rules.candidates(len(arena.frames))
        arena.release(candidates.start, candidates.stop)
        for group, value in zip(self.late, change.late_values):
            if value is not None:
                group.remember(value)
            own = group.table.frames
            if len(own) >= self._one_above_minimum:  # a shorter group keeps all of them
                candidates = self.rules.candidates(len(own))
                del own[candidates]
        self.consolidations += 1


Late = LateGroup  # the name in pickles of version 0.1
