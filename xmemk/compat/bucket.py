"""A bucket: objects that joined together, with keys of their own, as Cutie and DEVA keep them.

A bucket is a :class:`xmemk.memory.Arena` whose first ``permanent`` frames stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from .. import api
from ..inputs import MemoryInputs, QueryInputs
from ..memory import Arena, Spec
from ..memory.table import LONG_TERM, Run
from ..memory.values import Values

Readouts = list[tuple[list[int], Tensor]]  # labels of some objects and their [B, O, CV, Q]


class HostFrame(NamedTuple):
    """A memory frame as tokens."""

    key: Tensor  # [B, CK, HW]
    shrinkage: Tensor  # [B, 1, HW]
    selection: Tensor | None  # [B, CK, HW]
    value: Tensor  # [B, O, CV, HW]


@dataclass(frozen=True)
class HostRules:
    """What a host does with a bucket.

    full(temporary frames): whether to consolidate now. candidates(temporary frames): the first of
    them that then leaves, and the first behind it that stays. survivors(arena): the long-term
    tokens [B, n] that stay when room is made, in order, and whether they ascend; None to evict
    nothing. keep_frames: without long-term memory, how many temporary frames stay; None for all.
    """

    long_term: bool
    room: int  # frames an arena holds from the start, permanent ones included
    max_tokens: int = 0  # of long-term memory
    count_long_term: bool = True
    num_prototypes: int = 0
    full: Callable[[int], bool] = lambda frames: False
    candidates: Callable[[int], tuple[int, int]] = lambda frames: (0, 0)
    survivors: Callable[[Arena], tuple[Tensor, bool] | None] = lambda arena: None
    keep_frames: int | None = None

    def spec(self, frame: HostFrame, objects: int) -> Spec:
        """The storage of a bucket whose first frame is this one."""
        return Spec(
            batch=frame.key.shape[0],
            frame=frame.key.shape[2],
            key_channels=frame.key.shape[1],
            value_channels=frame.value.shape[2],
            objects=objects,
            key_dtype=frame.key.dtype,
            value_dtype=frame.value.dtype,
            device=frame.key.device,
            frames=self.room,
            long_term=self.max_tokens if self.long_term else 0,
            has_selection=self.long_term,
            count_long_term=self.count_long_term,
        )


@dataclass
class HostBucket:
    """Objects that joined together.

    long_engaged: whether long-term memory was ever used, even if it is empty now. frame_numbers:
    the number of every frame that the arena holds; buckets that hold one frame give it one number.
    """

    objects: list[int]
    arena: Arena
    permanent: int = 0
    long_engaged: bool = False
    frame_numbers: list[int] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """The runs of the frames, oldest first, permanent ones before all others."""
        return self.arena.table.runs(self.arena.frames)

    @property
    def temporary(self) -> list[Run]:
        """The runs of the frames that are not permanent."""
        return self.arena.table.runs(self.arena.frames[self.permanent :])

    @property
    def long_term(self) -> list[Run]:
        """The run of long-term memory."""
        return [Run(LONG_TERM, 0, self.arena.long_term)]

    def release(self, start: int, stop: int) -> None:
        """Frames ``start`` to ``stop`` leave."""
        self.arena.release(start, stop)
        del self.frame_numbers[start:stop]

    def readouts(self, weight: Tensor, index: Tensor, chunk: int, backend: str) -> Readouts:
        """Eq. 1 with weight and index [B, Q, k], for ``chunk`` objects at a time, all below 1."""
        memory = self.arena.values.segments(self.arena.table.runs())
        return [
            (labels, api.readout_topk([v[:, rows] for v in memory], weight, index, backend=backend))
            for labels, rows in self._chunks(len(self.objects) if chunk < 1 else chunk)
        ]

    def read(
        self, queries: QueryInputs, *, top_k: int | None, chunk: int, return_usage: bool, backend: str
    ) -> tuple[Readouts, Tensor | None]:
        """Eq. 1 for ``chunk`` objects at a time, all at once below 1: readouts and usage."""
        if chunk < 1 or chunk >= len(self.objects):
            readout, usage = self.arena.read(queries, top_k=top_k, return_usage=return_usage, backend=backend)
            return [(self.objects, readout)], usage
        runs = self.arena.table.runs()
        memory = self.arena.keys(runs)._replace(mv=self.arena.values.segments(runs))
        if top_k is None:
            # The affinity of all tokens is not stored; each chunk goes through the memory again.
            return self._dense_chunks(memory, queries, chunk, return_usage, backend)
        weight, index, *usages = api.affinity_topk(
            memory.mk, memory.ms, *queries, top_k=top_k, return_usage=return_usage, backend=backend
        )
        return self.readouts(weight, index, chunk, backend), usages[0] if usages else None

    def _dense_chunks(
        self, memory: MemoryInputs, queries: QueryInputs, chunk: int, return_usage: bool, backend: str
    ) -> tuple[Readouts, Tensor | None]:
        readouts: Readouts = []
        usage: Tensor | None = None
        for labels, rows in self._chunks(chunk):
            part = memory._replace(mv=[v[:, rows] for v in memory.mv])
            if return_usage and usage is None:
                readout, usage = api.memory_read(*part, *queries, return_usage=True, backend=backend)
            else:
                readout = api.memory_read(*part, *queries, backend=backend)
            readouts.append((labels, readout))
        return readouts, usage

    def _chunks(self, chunk: int) -> list[tuple[list[int], slice]]:
        starts = range(0, len(self.objects), chunk)
        return [(self.objects[i : i + chunk], slice(i, i + chunk)) for i in starts]


def enlarge(arena: Arena, long_term: int, others: Sequence[Values] = ()) -> None:
    """Makes room for so many long-term tokens, also in ``others``: values with the arena's keys.

    For limits that are raised while a video runs. Stored tokens are copied once.
    """
    banks = [bank for bank in arena.banks.values() if bank is not arena.selection]  # prototypes have no selection
    banks += [bank for values in others for bank in values.banks]
    small = [bank for bank in banks if bank.blocks[LONG_TERM].shape[1] < long_term]
    for bank, block in [(bank, bank.empty(long_term)) for bank in small]:
        block[:, : arena.long_term].copy_(bank.blocks[LONG_TERM][:, : arena.long_term])
        bank.blocks[LONG_TERM] = block
    if small:
        arena.spec = replace(arena.spec, long_term=max(long_term, arena.spec.long_term))
