"""The storage of one rank: its slice of every frame, and its share of the prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..memory.arena import Arena, Prototypes
from ..memory.spec import Spec
from ..memory.table import Slot
from . import read, upkeep
from .shards import Placement, Shards


class ShardedArena(Arena):
    """An arena whose tokens lie on all ranks of ``shards``.

    A frame is cut into slices of equal size, so frames keep the shards balanced by themselves.
    Prototypes go to the ranks that hold the fewest, and an eviction makes room for as many as it
    removes, so long-term memory stays balanced too.

    spec: of this rank. frame: tokens of a whole frame. serial: for each long-term token of this
    rank, how many prototypes were made before it; ascending. long_term_of: long-term tokens of
    every rank.
    """

    def __init__(self, spec: Spec, frame: int, shards: Shards) -> None:
        super().__init__(spec, ShardedFunctions(self))
        self.shards = shards
        self.slice = shards.slice_of(frame)
        self.whole_frame = frame
        self.serial = torch.zeros(spec.long_term, dtype=torch.int64, device=spec.device)
        self.long_term_of = [0] * shards.size
        self.made = 0
        self.staying: list[int] = []  # of the survivors that were computed last, per rank

    @property
    def total_long_term(self) -> int:
        """Long-term tokens of all ranks."""
        return sum(self.long_term_of)

    def fork(self) -> ShardedArena:
        """See :meth:`Arena.fork`."""
        twin = cast(ShardedArena, super().fork())
        twin.serial = self.serial.clone()
        twin.functions = twin.values.functions = ShardedFunctions(twin)
        return twin

    def stage(self, key: Tensor, shrinkage: Tensor, selection: Tensor | None, value: Tensor) -> Slot:
        """:meth:`Arena.stage` of this rank's slice of a frame."""
        mine = self.slice
        return super().stage(
            key[:, :, mine],
            shrinkage[:, :, mine],
            None if selection is None else selection[:, :, mine],
            value[..., mine],
        )

    def placement(self) -> Placement:
        """Of all tokens."""
        of_frames = self.placement_of_frames(len(self.frames))
        place = torch.cat([self.serial[: self.long_term], self.made + of_frames.place])
        return Placement(place, tuple(map(sum, zip(self.long_term_of, of_frames.sizes))))

    def placement_of_frames(self, frames: int) -> Placement:
        """Of the tokens of so many frames, among these."""
        device = self.spec.device
        start = torch.arange(frames, device=device)[:, None] * self.whole_frame + self.slice.start
        place = (start + torch.arange(self.spec.frame, device=device)).flatten()
        return Placement(place, tuple(frames * size for size in self.shards.sizes_of(self.whole_frame)))

    def survivors(self, keep: int, *, backend: str = "auto") -> Tensor:
        """This rank's long-term tokens [1, n] among the ``keep`` of all ranks that stay."""
        placement = Placement(self.serial[: self.long_term], tuple(self.long_term_of))
        index, self.staying = upkeep.evict_lfu(self.long_term_usage(), keep, placement, shards=self.shards)
        return index

    def keep(self, index: Tensor, *, ascending: bool = True) -> None:
        """See :meth:`Arena.keep`."""
        super().keep(index, ascending=ascending)
        self.serial[: index.shape[1]] = self.serial[index[0]]
        self.long_term_of = self.staying

    def remember(self, prototypes: Prototypes) -> None:
        """Appends this rank's share of the prototypes, which every rank is given."""
        count = prototypes.key.shape[2]
        shares = shares_of(count, self.long_term_of)
        first = sum(shares[: self.shards.rank])
        mine = slice(first, first + shares[self.shards.rank])
        at = self.long_term
        super().remember(Prototypes(*(x[..., mine] for x in prototypes)))
        self.serial[at : self.long_term] = torch.arange(
            self.made + mine.start, self.made + mine.stop, device=self.serial.device
        )
        self.long_term_of = [held + share for held, share in zip(self.long_term_of, shares)]
        self.made += count


class ShardedFunctions:
    """The stateless functions over all ranks, for the tokens of one arena."""

    def __init__(self, arena: ShardedArena) -> None:
        self.arena = arena

    def memory_read(self, *inputs: Any, **options: Any) -> Any:
        """:func:`.read.memory_read` of all tokens of the arena."""
        return read.memory_read(*inputs, **options, shards=self.arena.shards, place=self.arena.placement())

    def affinity_topk(self, *inputs: Any, **options: Any) -> Any:
        """:func:`.read.affinity_topk` of all tokens of the arena."""
        return read.affinity_topk(*inputs, **options, shards=self.arena.shards, place=self.arena.placement())

    def readout_topk(self, *inputs: Any, **options: Any) -> Tensor:
        """:func:`.read.readout_topk`"""
        return read.readout_topk(*inputs, **options, shards=self.arena.shards)

    def consolidate(
        self, mk: Sequence[Tensor], ms: Any, me: Any, mv: Any, usage: Tensor, count: int, *, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`.upkeep.consolidate` of whole frames."""
        frame = self.arena.spec.frame
        placement = self.arena.placement_of_frames(usage.shape[1] // frame if frame else 0)
        return upkeep.consolidate(mk, ms, me, mv, usage, count, placement, shards=self.arena.shards)


def shares_of(count: int, held: Sequence[int]) -> list[int]:
    """How many of ``count`` new tokens each rank takes, so that ranks hold equally many at the end.

    Where that cannot be, those that hold the fewest come first, and no rank gives any away.
    """
    shares = [0] * len(held)
    level = sorted(range(len(held)), key=lambda rank: (held[rank], rank))
    left = count
    for filled, rank in enumerate(level, 1):
        # The first ``filled`` ranks rise to the height of the next, or share what is left.
        height = held[rank]
        above = held[level[filled]] if filled < len(level) else None
        rise = left if above is None else min(left, filled * (above - height))
        for i, r in enumerate(level[:filled]):
            shares[r] += rise // filled + (i < rise % filled)
        left -= rise
        if left == 0:
            break
    return shares
