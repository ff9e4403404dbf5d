"""The stateless functions a memory is built on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import api, backends


class PublicFunctions:
    """The functions of :mod:`xmemk.api` as an object that can be copied and pickled with a memory.

    A backend named for a memory serves its reads and consolidations, or refuses. Selection and
    eviction are left to "auto" where that backend has no kernel for them.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(api, name)

    def select_prototypes(self, usage: Tensor, num_prototypes: int, *, backend: str = "auto") -> Tensor:
        """:func:`xmemk.select_prototypes`"""
        return api.select_prototypes(usage, num_prototypes, backend=backends.for_upkeep("select_prototypes", backend))

    def evict_lfu(self, usage: Tensor, keep: int, *, backend: str = "auto") -> Tensor:
        """:func:`xmemk.evict_lfu`"""
        return api.evict_lfu(usage, keep, backend=backends.for_upkeep("evict_lfu", backend))


PUBLIC = PublicFunctions()
