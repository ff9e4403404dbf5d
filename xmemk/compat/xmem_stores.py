"""XMem's view of the stores inside :class:`xmemk.Memory`: sizes for displays, tensors for whoever looks.

Tensors are put together in the host's layout when asked for, as copies: changing them does not change the memory.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from .. import api
from ..reference.config import MemoryConfig
from ..reference.memory import Memory
from ..reference.stores import Rules, Store


class _Ops:
    def __init__(self, backend: str) -> None:
        self.memory_read, self.select_prototypes = api.memory_read, api.select_prototypes
        self.consolidate, self.evict_lfu = api.consolidate, api.evict_lfu


def new_memory(config: MemoryConfig, backend: str) -> Memory:
    return Memory(config, ops=_Ops(backend))


def reconfigure(memory: Memory, config: MemoryConfig) -> Memory:
    new = Memory(config, ops=memory.ops)
    new._layout = memory._layout
    groups = memory._groups
    if groups is not None:
        new._groups = dataclasses.replace(groups, rules=Rules(config, memory.ops, groups.rules.frame))
    return new


def consolidate_now(memory: Memory) -> Memory:
    groups = memory._groups
    memory._groups = groups._evict()._consolidate(groups.working)  # type: ignore[union-attr]
    return memory


class StoreView:
    """Working or long-term memory with the attributes of XMem's KeyValueMemoryStore that are read from outside."""

    def __init__(self, manager: Any, which: Literal["working", "long_term"], count_usage: bool) -> None:
        self._manager = manager
        self._which = which
        self.count_usage = count_usage

    @property
    def size(self) -> int:
        """N; with groups="exact" the tokens of all groups together."""
        memory = self._manager.memory
        return int(memory.working_size if self._which == "working" else memory.long_term_size)

    def engaged(self) -> bool:
        """Whether anything was ever stored."""
        return self._store is not None

    @property
    def key(self) -> Tensor | None:
        """[1, CK, N]."""
        return None if self._store is None else self._store.key

    @property
    def shrinkage(self) -> Tensor | None:
        """[1, 1, N]."""
        return None if self._store is None else self._store.shrinkage

    @property
    def selection(self) -> Tensor | None:
        """[1, CK, N] in working memory with a long-term memory beside it, else None."""
        return None if self._store is None else self._store.selection

    @property
    def value(self) -> list[Tensor]:
        """Per group of objects [O, CV, V], V <= N: the values of the last V tokens."""
        groups = self._manager.memory.groups
        if groups is None:
            return []
        values = groups.working_values if self._which == "working" else groups.long_term_values
        return [v[0] for v in values if self._which == "working" or v.shape[-1]]

    @property
    def use_count(self) -> Tensor | None:
        """[1, 1, N]: the mass each token received."""
        return None if self._store is None or self._store.use is None else self._store.use[:, None]

    @property
    def life_count(self) -> Tensor | None:
        """[1, 1, N]: how many reads each token has seen, plus 1e-7."""
        return None if self._store is None or self._store.life is None else self._store.life[:, None]

    k, s, e, v = key, shrinkage, selection, value

    @property
    def obj_groups(self) -> list[list[int]]:
        """Per group the objects, counted from 0."""
        groups = self._manager.memory.groups
        return [] if groups is None else [[label - 1 for label in group] for group in groups.groups]

    @property
    def all_objects(self) -> list[int]:
        """All objects, counted from 0."""
        return [label for group in self.obj_groups for label in group]

    @property
    def num_groups(self) -> int:
        """Groups of objects that have values here."""
        return len(self.value)

    def get_v_size(self, ni: int) -> int:
        """V of group ``ni``."""
        return self.value[ni].shape[2]

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
    def dtypes(self) -> tuple[torch.dtype, torch.dtype] | None:
        layout = self._manager.memory._layout
        return None if layout is None else (layout.key_dtype, layout.value_dtype)

    @property
    def _store(self) -> Store | None:
        groups = self._manager.memory.groups
        if groups is None:
            return None
        return groups.working if self._which == "working" else groups.long_term
