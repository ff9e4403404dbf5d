"""Groups of objects with separate keys: ``groups="exact"``.

Objects that join at the same frame share a bucket. A bucket is a complete memory in an arena of its
own: it starts with the frame at which its objects joined, keeps that frame as the paper keeps the
first, and counts, consolidates and evicts independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs import QueryInputs
from .arena import Arena, Prototypes
from .rules import FrameTokens, MemoryRules, objects_of
from .spec import Spec
from .table import Slot


@dataclass
class BucketChange:
    """What a memory frame does to a bucket: computed, not yet committed."""

    slot: Slot
    prototypes: Prototypes | None = None
    survivors: Tensor | None = None
    scratch: Tensor | None = None


class ExactBucket:
    """The memory of the objects that joined at one frame. ``spec`` replaces that of the rules."""

    def __init__(self, rules: MemoryRules, objects: tuple[int, ...], spec: Spec | None = None) -> None:
        self.objects = objects
        self.arena = Arena(spec or rules.spec(len(objects)), rules.functions, rules.graphs)
        self.consolidations = 0
        self.evictions = 0

    def prepare(self, rules: MemoryRules, frame: FrameTokens, value: Tensor) -> BucketChange:
        """Computes what a frame with values [B, O, CV, HW] changes: everything that can fail."""
        arena, backend = self.arena, rules.backend
        change = BucketChange(arena.stage(*frame, value))
        frames = [*arena.frames, change.slot]
        if not rules.is_full(len(frames)):
            return change
        keep = rules.long_term_before_prototypes
        if arena.long_term > keep:  # Sec. 2.3, removing obsolete features: makes room for P prototypes
            change.survivors = arena.survivors(keep, backend=backend)
            change.scratch = arena.scratch(keep)
        candidates = frames[rules.candidates(len(frames))]
        change.prototypes = arena.prototypes(candidates, rules.prototypes(len(candidates)), backend=backend)
        return change

    def commit(self, rules: MemoryRules, change: BucketChange) -> None:
        """Applies a prepared change."""
        arena = self.arena
        if change.survivors is not None:
            arena.keep(change.survivors, scratch=change.scratch)
            self.evictions += 1
        arena.admit(change.slot)
        if change.prototypes is not None:
            arena.remember(change.prototypes)
            candidates = rules.candidates(len(arena.frames))
            arena.release(candidates.start, candidates.stop)
            self.consolidations += 1


class SeparateGroups:
    """All buckets, in the order in which their objects joined."""

    def __init__(self, rules: MemoryRules) -> None:
        self.rules = rules
        self.buckets: list[ExactBucket] = []
        self.gone = (0, 0)  # consolidations and evictions of buckets that have left

    @property
    def objects(self) -> tuple[int, ...]:
        return tuple(label for bucket in self.buckets for label in bucket.objects)

    @property
    def working_size(self) -> int:
        return sum(bucket.arena.tokens - bucket.arena.long_term for bucket in self.buckets)

    @property
    def long_term_size(self) -> int:
        return sum(bucket.arena.long_term for bucket in self.buckets)

    @property
    def consolidations(self) -> int:
        return self.gone[0] + sum(bucket.consolidations for bucket in self.buckets)

    @property
    def evictions(self) -> int:
        return self.gone[1] + sum(bucket.evictions for bucket in self.buckets)

    @property
    def nbytes(self) -> int:
        return sum(bucket.arena.nbytes for bucket in self.buckets)

    def add(self, frame: FrameTokens, value: Tensor, objects: tuple[int, ...]) -> None:
        """Adds a memory frame to every bucket, and a new bucket for objects that join now."""
        row = {label: i for i, label in enumerate(objects)}
        known = set(self.objects)
        new = tuple(label for label in objects if label not in known)
        buckets = [*self.buckets, *([ExactBucket(self.rules, new)] if new else [])]
        changes = [
            b.prepare(self.rules, frame, objects_of(value, [row[label] for label in b.objects])) for b in buckets
        ]
        for bucket, change in zip(buckets, changes):
            bucket.commit(self.rules, change)
        self.buckets = buckets

    def read(self, queries: QueryInputs) -> tuple[Tensor, list[Tensor | None]]:
        """The readout [B, O, CV, Q] of all buckets, and their usage for :meth:`record`."""
        results = [bucket.arena.read(queries, **self.rules.read_options) for bucket in self.buckets]
        readouts = [readout for readout, _ in results]
        return readouts[0] if len(readouts) == 1 else torch.cat(readouts, 1), [usage for _, usage in results]

    def record(self, usages: Sequence[Tensor | None]) -> None:
        """Counts a read, per bucket with the mass that its tokens received."""
        for bucket, usage in zip(self.buckets, usages):
            if usage is not None:
                bucket.arena.record(usage)

    def remove(self, leaving: set[int]) -> None:
        """Removes objects. A bucket is removed with its last object."""
        stay: list[ExactBucket] = []
        shrunk = []
        gone = self.gone
        for bucket in self.buckets:
            rows = [row for row, label in enumerate(bucket.objects) if label in leaving]
            if len(rows) == len(bucket.objects):
                gone = gone[0] + bucket.consolidations, gone[1] + bucket.evictions
                continue
            if rows:
                shrunk.append((bucket, bucket.arena.without(rows)))
            stay.append(bucket)
        for bucket, values in shrunk:
            bucket.arena.values = values
            bucket.objects = tuple(label for label in bucket.objects if label not in leaving)
        self.buckets, self.gone = stay, gone


# The names in pickles of version 0.1.
Bucket = ExactBucket
ExactGroups = SeparateGroups
