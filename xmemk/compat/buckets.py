"""Buckets: objects that joined together, with keys of their own, as Cutie and DEVA keep them, each in an arena.

A bucket is a :class:`xmemk.memory.Arena` whose first ``permanent`` frames stay. Adding a frame to all buckets is one
step: everything that can fail is computed before anything changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import api
from ..memory import Arena, Prototypes, Spec
from ..memory.table import LONG_TERM, Run, Slot
from ..memory.values import Values


class Frame(NamedTuple):
    """A memory frame: key and selection [B, CK, HW], shrinkage [B, 1, HW], value [B, O, CV, HW]."""

    key: Tensor
    shrinkage: Tensor
    selection: Tensor | None
    value: Tensor


@dataclass
class Bucket:
    """Objects that joined together. ``long_engaged``: long-term memory was in use once, even if it is empty now."""

    objects: list[int]
    arena: Arena
    permanent: int = 0
    long_engaged: bool = False

    @property
    def runs(self) -> list[Run]:
        """Of the frames, oldest first, permanent ones before all others."""
        return self.arena.table.runs(self.arena.frames)

    @property
    def temporary(self) -> list[Run]:
        """Of the frames that are not permanent."""
        return self.arena.table.runs(self.arena.frames[self.permanent :])

    @property
    def long_term(self) -> list[Run]:
        """Of long-term memory."""
        return [Run(LONG_TERM, 0, self.arena.long_term)]

    def read(
        self, qk: Tensor, qe: Tensor | None, *, top_k: int | None, chunk: int, return_usage: bool, backend: str
    ) -> tuple[list[tuple[list[int], Tensor]], Tensor | None]:
        """Eq. 1: per ``chunk`` objects (all at once below 1) their labels and readouts [B, O, CV, Q]; and usage."""
        if chunk < 1 or chunk >= len(self.objects):
            readout, usage = self.arena.read(qk, qe, top_k=top_k, return_usage=return_usage, backend=backend)
            return [(self.objects, readout)], usage
        runs = self.arena.table.runs()
        mk, ms = self.arena.keys(runs)
        mv = self.arena.values.segments(runs)
        if top_k is None:
            # The whole softmax is not kept; each chunk goes through the memory again.
            return self._dense_chunks(mk, ms, mv, qk, qe, chunk, return_usage, backend)
        weight, index, *found = api.affinity_topk(
            mk, ms, qk, qe, top_k=top_k, return_usage=return_usage, backend=backend
        )
        readouts = [
            (labels, api.readout_topk([v[:, rows] for v in mv], weight, index, backend=backend))
            for labels, rows in self._chunks(chunk)
        ]
        return readouts, found[0] if found else None

    def _dense_chunks(
        self,
        mk: list[Tensor],
        ms: list[Tensor],
        mv: list[Tensor],
        qk: Tensor,
        qe: Tensor | None,
        chunk: int,
        return_usage: bool,
        backend: str,
    ) -> tuple[list[tuple[list[int], Tensor]], Tensor | None]:
        readouts, usage = [], None
        for labels, rows in self._chunks(chunk):
            part = [v[:, rows] for v in mv]
            if return_usage and usage is None:
                readout, usage = api.memory_read(mk, ms, part, qk, qe, return_usage=True, backend=backend)
            else:
                readout = api.memory_read(mk, ms, part, qk, qe, backend=backend)
            readouts.append((labels, readout))
        return readouts, usage

    def _chunks(self, chunk: int) -> list[tuple[list[int], slice]]:
        starts = range(0, len(self.objects), chunk)
        return [(self.objects[i : i + chunk], slice(i, i + chunk)) for i in starts]


@dataclass(frozen=True)
class Rules:
    """What a host does with a bucket. Frames are counted with, tokens without the permanent part.

    full(temporary frames): whether to consolidate now. candidates(frames): which of the temporary frames then leave.
    survivors(arena): the long-term tokens [B, n] that stay when room is made, in order, and whether they ascend; None
    where nothing has to go. keep_frames: without long-term memory, how many temporary frames stay; None means all.
    """

    long_term: bool
    room: int  # frames an arena holds from the start
    max_tokens: int = 0  # of long-term memory
    count_long_term: bool = True
    num_prototypes: int = 0
    full: Callable[[int], bool] = lambda frames: False
    candidates: Callable[[int], tuple[int, int]] = lambda frames: (0, 0)
    survivors: Callable[[Arena], tuple[Tensor, bool] | None] = lambda arena: None
    keep_frames: int | None = None


@dataclass
class _Plan:
    """All that a new frame does to a bucket, computed and not yet done."""

    bucket: Bucket
    slot: Slot
    at: int | None
    permanent: bool
    keep: tuple[Tensor, bool, Tensor] | None = None  # survivors, ascending, scratch
    prototypes: Prototypes | None = None
    release: tuple[int, int] | None = None

    def commit(self) -> None:
        bucket, arena = self.bucket, self.bucket.arena
        arena.admit(self.slot, self.at)
        bucket.permanent += self.permanent
        if self.keep is not None:
            index, ascending, scratch = self.keep
            arena.keep(index, ascending=ascending, scratch=scratch)
        if self.prototypes is not None:
            arena.remember(self.prototypes)
            bucket.long_engaged = True
        if self.release is not None:
            arena.release(*self.release)


class Buckets:
    """All buckets of a video, by id, in the order in which their objects joined."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.held: dict[int, Bucket] = {}
        self.next_id = 0

    @property
    def objects(self) -> list[int]:
        return [label for bucket in self.held.values() for label in bucket.objects]

    def add(self, frame: Frame, objects: Sequence[int], rules: Rules, permanent: str) -> None:
        """A frame for every bucket whose objects are named, and a bucket for new ones; then the rules.

        permanent: "no"; "first", if the bucket has no permanent frame yet; "all", and before all others.
        ValueError where only some of a bucket's objects are named.
        """
        row = {label: i for i, label in enumerate(objects)}
        plans = []
        for bucket in self.held.values():
            named = [label for label in bucket.objects if label in row]
            if named and named != bucket.objects:
                raise ValueError(f"objects: wanted all of {bucket.objects}, which joined together, got {named}")
            if named:
                plans.append(self._plan(bucket, frame, [row[label] for label in named], rules, permanent))
        held = set(self.objects)
        new = [label for label in objects if label not in held]
        if new:
            bucket = Bucket(new, Arena(_spec(frame, len(new), rules)))
            plans.append(self._plan(bucket, frame, [row[label] for label in new], rules, permanent))
        for plan in plans:
            plan.commit()
        if new:
            self.held[self.next_id] = bucket
            self.next_id += 1

    def remove(self, leaving: set[int]) -> None:
        """Objects leave, with their values; a bucket goes with its last object."""
        left: dict[int, Bucket] = {}
        changes = []
        for name, bucket in self.held.items():
            rows = [i for i, label in enumerate(bucket.objects) if label in leaving]
            if len(rows) == len(bucket.objects):
                continue
            left[name] = bucket
            if rows:
                stay = [label for label in bucket.objects if label not in leaving]
                changes.append((bucket, stay, bucket.arena.without(rows)))
        for bucket, stay, values in changes:
            bucket.objects, bucket.arena.values = stay, values
        self.held = left

    def clear_temporary(self) -> None:
        """Only permanent frames stay."""
        for bucket in self.held.values():
            arena = bucket.arena
            arena.release(bucket.permanent, len(arena.frames))
            arena.keep(torch.empty(arena.spec.batch, 0, dtype=torch.int64, device=arena.spec.device))

    def consolidate(self, bucket: Bucket, rules: Rules) -> None:
        """Makes the bucket's candidates prototypes now."""
        start, stop = self._candidates(bucket.arena.frames[bucket.permanent :], bucket.permanent, rules)
        prototypes = self._prototypes(bucket, bucket.arena.frames[start:stop], rules)
        enlarge(bucket.arena, rules.max_tokens)
        bucket.arena.remember(prototypes)
        bucket.arena.release(start, stop)
        bucket.long_engaged = True

    def _plan(self, bucket: Bucket, frame: Frame, rows: list[int], rules: Rules, permanent: str) -> _Plan:
        arena = bucket.arena
        value = frame.value if rows == list(range(frame.value.shape[1])) else frame.value[:, rows]
        slot = arena.stage(frame.key, frame.shrinkage, frame.selection, value)
        stays = permanent == "all" or (permanent == "first" and bucket.permanent == 0)
        plan = _Plan(bucket, slot, 0 if stays else None, stays)
        frames = [slot, *arena.frames] if stays else [*arena.frames, slot]
        first = bucket.permanent + stays
        temporary = frames[first:]
        if rules.long_term and rules.full(len(temporary)):
            enlarge(arena, rules.max_tokens)
            found = rules.survivors(arena)
            if found is not None:
                index, ascending = found
                plan.keep = (index, ascending, arena.scratch(index.shape[1], ascending))
            start, stop = self._candidates(temporary, first, rules)
            plan.prototypes = self._prototypes(bucket, frames[start:stop], rules)
            plan.release = (start, stop)
        elif not rules.long_term and rules.keep_frames is not None and len(temporary) > rules.keep_frames:
            plan.release = (first, first + len(temporary) - rules.keep_frames)
        return plan

    def _candidates(self, temporary: list[Slot], first: int, rules: Rules) -> tuple[int, int]:
        start, stop = rules.candidates(len(temporary))
        return first + start, first + stop

    def _prototypes(self, bucket: Bucket, frames: list[Slot], rules: Rules) -> Prototypes:
        count = min(rules.num_prototypes, len(frames) * bucket.arena.spec.frame)
        return bucket.arena.prototypes(frames, count, backend=self.backend)


def enlarge(arena: Arena, long_term: int, others: Sequence[Values] = ()) -> None:
    """Room for so many long-term tokens, also for ``others``, values that share the arena's keys.

    For limits that are raised while a video runs: what is stored is copied once.
    """
    banks = [bank for bank in arena.banks.values() if bank is not arena.selection]  # prototypes have no selection
    banks += [bank for values in others for bank in values.banks]
    small = [bank for bank in banks if bank.blocks[LONG_TERM].shape[1] < long_term]
    for bank, block in [(bank, bank.empty(long_term)) for bank in small]:
        block[:, : arena.long_term].copy_(bank.blocks[LONG_TERM][:, : arena.long_term])
        bank.blocks[LONG_TERM] = block
    if small:
        arena.spec = dataclasses.replace(arena.spec, long_term=max(long_term, arena.spec.long_term))


def _spec(frame: Frame, objects: int, rules: Rules) -> Spec:
    return Spec(
        batch=frame.key.shape[0],
        frame=frame.key.shape[2],
        key_channels=frame.key.shape[1],
        value_channels=frame.value.shape[2],
        objects=objects,
        key_dtype=frame.key.dtype,
        value_dtype=frame.value.dtype,
        device=frame.key.device,
        frames=rules.room,
        long_term=rules.max_tokens if rules.long_term else 0,
        has_selection=rules.long_term,
        count_long_term=rules.count_long_term,
    )
