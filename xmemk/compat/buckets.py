"""All buckets of a video: frames join them and objects leave them, completely or not at all.

Everything that can fail is computed before anything changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs import QueryInputs
from ..memory import Arena, Prototypes
from ..memory.table import Slot
from .bucket import HostBucket, HostFrame, HostRules, Readouts, enlarge
from .shared import affinities, common_frames


@dataclass
class _Plan:
    """All that a new frame does to a bucket: computed, not yet committed."""

    bucket: HostBucket
    number: int  # of the frame
    slot: Slot
    at: int | None
    permanent: bool
    keep: tuple[Tensor, bool] | None = None  # survivors, ascending
    prototypes: Prototypes | None = None
    release: tuple[int, int] | None = None

    def commit(self) -> None:
        bucket, arena = self.bucket, self.bucket.arena
        arena.admit(self.slot, self.at)
        bucket.frame_numbers.insert(len(bucket.frame_numbers) if self.at is None else self.at, self.number)
        bucket.permanent += self.permanent
        if self.keep is not None:
            index, ascending = self.keep
            arena.keep(index, ascending=ascending)
        if self.prototypes is not None:
            arena.remember(self.prototypes)
            bucket.long_engaged = True
        if self.release is not None:
            bucket.release(*self.release)


class HostBuckets:
    """The buckets of a video by id, in the order in which their objects joined."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.by_id: dict[int, HostBucket] = {}
        self.next_id = 0
        self._frames = 0  # added so far

    def __bool__(self) -> bool:
        return bool(self.by_id)

    @property
    def objects(self) -> list[int]:
        return [label for bucket in self.by_id.values() for label in bucket.objects]

    def read(
        self, queries: QueryInputs, *, top_k: int | None, chunk: int, return_usage: bool
    ) -> Iterator[tuple[HostBucket, Readouts, Tensor | None]]:
        """Eq. 1 for every bucket (see :meth:`.bucket.HostBucket.read`): readouts and usage."""
        buckets = list(self.by_id.values())
        common = [] if top_k is None else common_frames(buckets)
        if not common or top_k is None:
            for bucket in buckets:
                readouts, usage = bucket.read(
                    queries, top_k=top_k, chunk=chunk, return_usage=return_usage, backend=self.backend
                )
                yield bucket, readouts, usage
            return
        sparse = affinities(buckets, common, queries, top_k, return_usage, self.backend)
        for bucket, (weight, index, usage) in zip(buckets, sparse):
            yield bucket, bucket.readouts(weight, index, chunk, self.backend), usage

    def add(self, frame: HostFrame, objects: Sequence[int], rules: HostRules, permanent: str) -> None:
        """Adds a frame to every bucket whose objects are named, and a bucket for new objects.

        permanent: "no"; "first", if the bucket has no permanent frame yet; or "all", where the
        frame goes before all others. ValueError where only some objects of a bucket are named.
        """
        row = {label: i for i, label in enumerate(objects)}
        plans = []
        for bucket in self.by_id.values():
            named = [label for label in bucket.objects if label in row]
            if named and named != bucket.objects:
                raise ValueError(f"objects: wanted all of {bucket.objects}, which joined together, got {named}")
            if named:
                plans.append(self._plan(bucket, frame, [row[label] for label in named], rules, permanent))
        known = set(self.objects)
        new = [label for label in objects if label not in known]
        if new:
            bucket = HostBucket(new, Arena(rules.spec(frame, len(new))))
            plans.append(self._plan(bucket, frame, [row[label] for label in new], rules, permanent))
        for plan in plans:
            plan.commit()
        self._frames += 1
        if new:
            self.by_id[self.next_id] = bucket
            self.next_id += 1

    def remove(self, leaving: set[int]) -> None:
        """Removes objects with their values; a bucket is removed with its last object."""
        remaining: dict[int, HostBucket] = {}
        changes = []
        for name, bucket in self.by_id.items():
            rows = [i for i, label in enumerate(bucket.objects) if label in leaving]
            if len(rows) == len(bucket.objects):
                continue
            remaining[name] = bucket
            if rows:
                stay = [label for label in bucket.objects if label not in leaving]
                changes.append((bucket, stay, bucket.arena.without(rows)))
        for bucket, stay, values in changes:
            bucket.objects, bucket.arena.values = stay, values
        self.by_id = remaining

    def clear_temporary(self) -> None:
        """Removes everything but permanent frames."""
        for bucket in self.by_id.values():
            arena = bucket.arena
            bucket.release(bucket.permanent, len(arena.frames))
            arena.keep(torch.empty(arena.spec.batch, 0, dtype=torch.int64, device=arena.spec.device))

    def consolidate(self, bucket: HostBucket, rules: HostRules) -> None:
        """Consolidates a bucket now."""
        start, stop = self._candidates(bucket.arena.frames[bucket.permanent :], bucket.permanent, rules)
        prototypes = self._prototypes(bucket, bucket.arena.frames[start:stop], rules)
        enlarge(bucket.arena, rules.max_tokens)
        bucket.arena.remember(prototypes)
        bucket.release(start, stop)
        bucket.long_engaged = True

    def _plan(self, bucket: HostBucket, frame: HostFrame, rows: list[int], rules: HostRules, permanent: str) -> _Plan:
        arena = bucket.arena
        value = frame.value if rows == list(range(frame.value.shape[1])) else frame.value[:, rows]
        slot = arena.stage(frame.key, frame.shrinkage, frame.selection, value)
        stays = permanent == "all" or (permanent == "first" and bucket.permanent == 0)
        plan = _Plan(bucket, self._frames, slot, 0 if stays else None, stays)
        frames = [slot, *arena.frames] if stays else [*arena.frames, slot]
        first = bucket.permanent + stays
        temporary = frames[first:]
        if rules.long_term and rules.full(len(temporary)):
            enlarge(arena, rules.max_tokens)
            plan.keep = rules.survivors(arena)
            start, stop = self._candidates(temporary, first, rules)
            plan.prototypes = self._prototypes(bucket, frames[start:stop], rules)
            plan.release = (start, stop)
        elif not rules.long_term and rules.keep_frames is not None and len(temporary) > rules.keep_frames:
            plan.release = (first, first + len(temporary) - rules.keep_frames)
        return plan

    def _candidates(self, temporary: list[Slot], first: int, rules: HostRules) -> tuple[int, int]:
        start, stop = rules.candidates(len(temporary))
        return first + start, first + stop

    def _prototypes(self, bucket: HostBucket, frames: list[Slot], rules: HostRules) -> Prototypes:
        count = min(rules.num_prototypes, len(frames) * bucket.arena.spec.frame)
        return bucket.arena.prototypes(frames, count, backend=self.backend)
