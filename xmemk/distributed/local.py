"""What one rank holds of a sharded memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from .. import memory as memory_room
from ..memory.arena import Arena
from ..memory.checks import FrameLayout
from ..memory.exact import SeparateGroups
from ..memory.rules import MemoryRules
from ..memory.spec import Spec
from ..reference.config import MemoryConfig
from .arena import ShardedArena
from .shards import Shards


@dataclass(frozen=True)
class ShardedRules(MemoryRules):
    """The rules of a whole memory, and the room that one rank needs."""

    shards: Shards = field(default_factory=Shards)

    def spec(self, objects: int) -> Spec:
        """The room of this rank for so many objects."""
        whole = super().spec(objects)
        frame = self.shards.sizes_of(whole.frame)[self.shards.rank]
        return replace(whole, frame=frame, long_term=-(-whole.long_term // self.shards.size))

    def arena(self, spec: Spec) -> Arena:
        """An empty arena."""
        return ShardedArena(spec, self.layout.frame, self.shards)


class LocalMemory(memory_room.Memory):
    """This rank's tokens of this rank's objects."""

    def __init__(self, shards: Shards, config: MemoryConfig | None, backend: str, check_finite: bool | None) -> None:
        super().__init__(config, backend=backend, check_finite=check_finite)
        self.shards = shards

    @property
    def layout(self) -> FrameLayout | None:
        """Of whole frames; None before the first add."""
        return self._layout

    @property
    def groups(self) -> SeparateGroups | None:
        """The stores; None before the first add."""
        return cast("SeparateGroups | None", self._groups)

    def new_groups(self, layout: FrameLayout) -> SeparateGroups:
        """Empty stores."""
        return SeparateGroups(ShardedRules(self.config, layout, self.backend, shards=self.shards))

    def restore(self, layout: FrameLayout, groups: SeparateGroups) -> None:
        """Takes stores that were read from files."""
        self._layout, self._groups = layout, groups

    _new_groups = new_groups


def arenas_of(local: LocalMemory) -> list[ShardedArena]:
    """The arenas of this rank."""
    return [] if local.groups is None else [cast(ShardedArena, bucket.arena) for bucket in local.groups.buckets]
