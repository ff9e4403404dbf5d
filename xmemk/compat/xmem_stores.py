"""XMem's view of the stores of :class:`xmemk.Memory`: sizes for displays, tensors for inspection.

Tensors are copies in the host's layout, made when they are accessed. Changing them does not change
the memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import Arena, Memory
from ..memory.arena import LIFE_OF_A_NEW_TOKEN
from ..memory.exact import SeparateGroups
from ..memory.table import LONG_TERM, Run, Table
from ..memory.values import Values
from ..reference.config import MemoryConfig
from .bucket import enlarge

_NOTHING = [Run(1, 0, 0)]  # what torch.cat joins where there are no tokens


class GroupValues(NamedTuple):
    """Objects that joined together, numbered from 0; their values, and where those lie."""

    objects: list[int]
    table: Table
    values: Values


def reconfigure(memory: Memory, config: MemoryConfig) -> None:
    """Changes the limits of a memory, which may hold objects already."""
    groups = memory.groups
    if groups is not None:
        arenas = [bucket.arena for bucket in groups.buckets] if isinstance(groups, SeparateGroups) else [groups.arena]
        late = [] if isinstance(groups, SeparateGroups) else [group.values for group in groups.late]
        for arena in arenas:
            if arena is not None:
                enlarge(arena, config.max_long_term_elements, late)
        groups.rules = dataclasses.replace(groups.rules, config=config)
    memory.config = config


class StoreView:
    """The attributes of XMem's KeyValueMemoryStore that are read from outside.

    With groups="exact" each group has keys of its own. Where there are several groups, ``key`` and
    the like then raise RuntimeError, and sizes are sums.
    """

    def __init__(self, memory: Memory, long_term: bool, count_usage: bool) -> None:
        self._memory = memory
        self._long_term = long_term
        self.count_usage = count_usage

    @property
    def size(self) -> int:
        """N."""
        return self._memory.long_term_size if self._long_term else self._memory.working_size

    def engaged(self) -> bool:
        """Whether anything was ever stored."""
        return self._memory.groups is not None and (not self._long_term or self._memory.consolidations > 0)

    @property
    def key(self) -> Tensor | None:
        """[1, CK, N]."""
        return self._joined(lambda arena, run: arena.key.view(run))

    @property
    def shrinkage(self) -> Tensor | None:
        """[1, 1, N]."""
        return self._joined(lambda arena, run: arena.shrinkage.rows(run)[:, None])

    @property
    def selection(self) -> Tensor | None:
        """[1, CK, N] in working memory with a long-term memory beside it, else None."""
        if self._long_term or not self.engaged() or self._arena.selection is None:
            return None
        return self._joined(lambda arena, run: arena.selection.view(run))

    @property
    def value(self) -> list[Tensor]:
        """Per group of objects [O, CV, V], V <= N: the values of the last V tokens."""
        values = []
        for i, group in enumerate(self._groups if self.engaged() else ()):
            runs = self._runs(group.table)
            if self._has_values(i, group):
                values.append(torch.cat(group.values.segments(runs), 3)[0])
        return values

    @property
    def use_count(self) -> Tensor | None:
        """[1, 1, N]: the mass each token received."""
        return (
            self._joined(lambda arena, run: arena.use.rows(run).to(arena.spec.number)[:, None])
            if self.count_usage
            else None
        )

    @property
    def life_count(self) -> Tensor | None:
        """[1, 1, N]: the reads since each token's birth, plus 1e-7."""

        def life(arena: Arena, run: Run) -> Tensor:
            return (arena.reads - arena.birth.rows(run)).to(arena.spec.number)[:, None] + LIFE_OF_A_NEW_TOKEN

        return self._joined(life) if self.count_usage else None

    k, s, e, v = key, shrinkage, selection, value

    @property
    def obj_groups(self) -> list[list[int]]:
        """Per group the objects, numbered from 0."""
        return [group.objects for group in self._groups]

    @property
    def all_objects(self) -> list[int]:
        """All objects, numbered from 0."""
        return [label for group in self._groups for label in group.objects]

    @property
    def num_groups(self) -> int:
        """Groups of objects that have values here."""
        return sum(self._has_values(i, group) for i, group in enumerate(self._groups)) if self.engaged() else 0

    def get_v_size(self, ni: int) -> int:
        """V of group ``ni``."""
        group = self._groups[ni]
        return sum(run.tokens for run in self._runs(group.table))

    def get_usage(self) -> Tensor:
        """[1, 1, N]: mass per read. RuntimeError where usage is not counted."""
        use, life = self.use_count, self.life_count
        if use is None or life is None:
            raise RuntimeError("usage is not counted here")
        return use / life

    def get_all_sliced(self, start: int, end: int) -> tuple[Tensor | None, ...]:
        """Keys, shrinkage, selection and usage of tokens ``start`` to ``end``; 0 for the last."""
        tensors = (self.key, self.shrinkage, self.selection, self.get_usage())
        return tuple(None if x is None else x[..., start : end or None] for x in tensors)

    @property
    def _groups(self) -> list[GroupValues]:
        groups = self._memory.groups
        if groups is None:
            return []
        parts: list[tuple[tuple[int, ...], Table, Values]]
        if isinstance(groups, SeparateGroups):
            parts = [(b.objects, b.arena.table, b.arena.values) for b in groups.buckets]
        else:
            arena = self._arena
            parts = [(groups.first, arena.table, arena.values)]
            parts += [(late.objects, late.table, late.values) for late in groups.late]
        return [GroupValues([label - 1 for label in labels], table, values) for labels, table, values in parts]

    @property
    def _arena(self) -> Arena:
        groups: Any = self._memory.groups
        if not isinstance(groups, SeparateGroups):
            return groups.arena
        if len(groups.buckets) > 1:
            raise RuntimeError('with groups="exact" each group of objects has keys of its own; look at memory.groups')
        return groups.buckets[0].arena

    def _has_values(self, i: int, group: GroupValues) -> bool:
        return i == 0 or not self._long_term or group.table.long > 0

    def _runs(self, table: Table) -> Sequence[Run]:
        return [Run(LONG_TERM, 0, table.long)] if self._long_term else table.runs(table.frames) or _NOTHING

    def _joined(self, part: Any) -> Tensor | None:
        if not self.engaged():
            return None
        arena = self._arena
        return torch.cat([part(arena, run) for run in self._runs(arena.table)], -1)
