"""XMem's view of the stores inside :class:`xmemk.Memory`: sizes for displays, tensors for whoever looks.

Tensors are put together in the host's layout when asked for, as copies: changing them does not change the memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import Arena, Memory
from ..memory.arena import LIFE_OF_A_NEW_TOKEN
from ..memory.exact import ExactGroups
from ..memory.table import LONG_TERM, Run, Table
from ..memory.values import Values
from ..reference.config import MemoryConfig
from .buckets import enlarge

_NOTHING = [Run(1, 0, 0)]  # so that there is always something to join


class Group(NamedTuple):
    """Objects that joined together, counted from 0; their values and where those lie."""

    objects: list[int]
    table: Table
    values: Values


def reconfigure(memory: Memory, config: MemoryConfig) -> None:
    """Other limits for a memory that may hold objects already."""
    groups = memory.groups
    if groups is not None:
        arenas = [bucket.arena for bucket in groups.buckets] if isinstance(groups, ExactGroups) else [groups.arena]
        late = [] if isinstance(groups, ExactGroups) else [group.values for group in groups.late]
        for arena in arenas:
            if arena is not None:
                enlarge(arena, config.max_long_term_elements, late)
        groups.rules = dataclasses.replace(groups.rules, config=config)
    memory.config = config


class StoreView:
    """The attributes of XMem's KeyValueMemoryStore that are read from outside.

    With groups="exact" each group has keys of its own: ``key`` and its like then raise RuntimeError where there are
    several groups, sizes are those of all together.
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
        found = []
        for i, group in enumerate(self._groups if self.engaged() else ()):
            runs = self._runs(group.table)
            if self._holds(i, group):
                found.append(torch.cat(group.values.segments(runs), 3)[0])
        return found

    @property
    def use_count(self) -> Tensor | None:
        """[1, 1, N]: the mass each token received."""
        return self._joined(lambda arena, run: arena.use.rows(run)[:, None]) if self.count_usage else None

    @property
    def life_count(self) -> Tensor | None:
        """[1, 1, N]: how many reads each token has seen, plus 1e-7."""

        def life(arena: Arena, run: Run) -> Tensor:
            return (arena.reads - arena.birth.rows(run)).to(arena.spec.number)[:, None] + LIFE_OF_A_NEW_TOKEN

        return self._joined(life) if self.count_usage else None

    k, s, e, v = key, shrinkage, selection, value

    @property
    def obj_groups(self) -> list[list[int]]:
        """Per group the objects, counted from 0."""
        return [group.objects for group in self._groups]

    @property
    def all_objects(self) -> list[int]:
        """All objects, counted from 0."""
        return [label for group in self._groups for label in group.objects]

    @property
    def num_groups(self) -> int:
        """Groups of objects that have values here."""
        return sum(self._holds(i, group) for i, group in enumerate(self._groups)) if self.engaged() else 0

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
        """Keys, shrinkage, selection and usage of tokens ``start`` to ``end``; an end of 0 is the last one."""
        tensors = (self.key, self.shrinkage, self.selection, self.get_usage())
        return tuple(None if x is None else x[..., start : end or None] for x in tensors)

    @property
    def _groups(self) -> list[Group]:
        groups = self._memory.groups
        if groups is None:
            return []
        found: list[tuple[tuple[int, ...], Table, Values]]
        if isinstance(groups, ExactGroups):
            found = [(b.objects, b.arena.table, b.arena.values) for b in groups.buckets]
        else:
            arena = self._arena
            found = [(groups.first, arena.table, arena.values)]
            found += [(late.objects, late.table, late.values) for late in groups.late]
        return [Group([label - 1 for label in labels], table, values) for labels, table, values in found]

    @property
    def _arena(self) -> Arena:
        groups: Any = self._memory.groups
        if not isinstance(groups, ExactGroups):
            return groups.arena
        if len(groups.buckets) > 1:
            raise RuntimeError('with groups="exact" each group of objects has keys of its own; look at memory.groups')
        return groups.buckets[0].arena

    def _holds(self, i: int, group: Group) -> bool:
        return i == 0 or not self._long_term or group.table.long > 0

    def _runs(self, table: Table) -> Sequence[Run]:
        return [Run(LONG_TERM, 0, table.long)] if self._long_term else table.runs(table.frames) or _NOTHING

    def _joined(self, part: Any) -> Tensor | None:
        if not self.engaged():
            return None
        arena = self._arena
        return torch.cat([part(arena, run) for run in self._runs(arena.table)], -1)
