"""Groups of objects with separate keys: ``groups="exact"``. Twin of :mod:`xmemk.memory.exact`.

Objects that join at the same frame share a bucket. A bucket is a complete memory: it starts with
the frame at which its objects joined, keeps that frame as the paper keeps the first, and counts,
consolidates and evicts independently. Every value is therefore read against its own key, and an
object is remembered in the same way whether or not other objects were there before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .stores import Rules, Store, outside, pick, record


@dataclass(frozen=True)
class Bucket:
    """The working and the long-term memory of the objects that joined at one frame."""

    objects: tuple[int, ...]
    working: Store
    working_value: Tensor  # [B, O, CV, N]
    long_term: Store | None = None  # None until the first consolidation
    long_term_value: Tensor | None = None  # [B, O, CV, L]
    consolidations: int = 0
    evictions: int = 0

    def read(self, rules: Rules, qk: Tensor, qe: Tensor | None) -> tuple[Tensor, Bucket]:
        """Eq. 1 over long-term and working memory.

        Returns the readout [B, O, CV, Q] and the bucket with usage recorded.
        """
        stores, values = [self.working], [self.working_value]
        if self.long_term is not None and self.long_term_value is not None:
            stores, values = [self.long_term, self.working], [self.long_term_value, self.working_value]
        readout, usage = rules.read(stores, values, qk, qe, count_usage=rules.config.enable_long_term)
        *long_term, working = record(stores, usage)
        return readout, replace(self, working=working, long_term=long_term[0] if long_term else None)

    def add(self, rules: Rules, frame: Store, value: Tensor) -> Bucket:
        """Adds a memory frame with values [B, O, CV, HW]; consolidates a full working memory."""
        working = self.working.followed_by(frame)
        bucket = replace(self, working=working, working_value=torch.cat([self.working_value, value], -1))
        return bucket._evict(rules)._consolidate(rules) if rules.is_full(working) else bucket

    def without(self, leaving: set[int]) -> Bucket | None:
        """The bucket without these objects; None where none is left."""
        stay = [row for row, label in enumerate(self.objects) if label not in leaving]
        if not stay:
            return None
        return replace(
            self,
            objects=tuple(self.objects[row] for row in stay),
            working_value=self.working_value[:, stay],
            long_term_value=None if self.long_term_value is None else self.long_term_value[:, stay],
        )

    def _evict(self, rules: Rules) -> Bucket:
        """Sec. 2.3, removing obsolete features: LFU eviction makes room for the next prototypes."""
        keep = rules.long_term_before_prototypes
        if self.long_term is None or self.long_term_value is None or self.long_term.size <= keep:
            return self
        survivors = rules.ops.evict_lfu(self.long_term.usage, keep)
        return replace(
            self,
            long_term=self.long_term.each(lambda x: pick(x, survivors)),
            long_term_value=pick(self.long_term_value, survivors),
            evictions=self.evictions + 1,
        )

    def _consolidate(self, rules: Rules) -> Bucket:
        """Sec. 2.3: candidates leave working memory and become prototypes (selection, Eq. 3)."""
        start, stop = rules.candidates(self.working.size)
        candidates = self.working.each(lambda x: x[..., start:stop])
        pk, ps, long_term_value = rules.ops.consolidate(
            candidates.key,
            candidates.shrinkage,
            candidates.selection,
            self.working_value[..., start:stop],
            candidates.usage,
            rules.prototypes(stop - start),
        )
        long_term = rules.new_prototypes(pk, ps)
        if self.long_term is not None and self.long_term_value is not None:
            long_term = self.long_term.followed_by(long_term)
            long_term_value = torch.cat([self.long_term_value, long_term_value], -1)
        return replace(
            self,
            working=self.working.each(lambda x: outside(x, start, stop)),
            working_value=outside(self.working_value, start, stop),
            long_term=long_term,
            long_term_value=long_term_value,
            consolidations=self.consolidations + 1,
        )


@dataclass(frozen=True)
class ExactGroups:
    """All buckets, in the order in which their objects joined."""

    rules: Rules
    buckets: tuple[Bucket, ...] = ()
    gone: tuple[int, int] = (0, 0)  # consolidations and evictions of buckets that have left

    @property
    def objects(self) -> tuple[int, ...]:
        return tuple(label for bucket in self.buckets for label in bucket.objects)

    @property
    def working_size(self) -> int:
        return sum(bucket.working.size for bucket in self.buckets)

    @property
    def long_term_size(self) -> int:
        return sum(bucket.long_term.size for bucket in self.buckets if bucket.long_term is not None)

    @property
    def consolidations(self) -> int:
        return self.gone[0] + sum(bucket.consolidations for bucket in self.buckets)

    @property
    def evictions(self) -> int:
        return self.gone[1] + sum(bucket.evictions for bucket in self.buckets)

    def add(self, frame: Store, value: Tensor, objects: tuple[int, ...]) -> ExactGroups:
        """Adds a memory frame to every bucket, and a new bucket for objects that join now."""
        row = {label: i for i, label in enumerate(objects)}
        buckets = [b.add(self.rules, frame, value[:, [row[label] for label in b.objects]]) for b in self.buckets]
        known = set(self.objects)
        new = tuple(label for label in objects if label not in known)
        if new:
            buckets.append(Bucket(new, frame, value[:, [row[label] for label in new]]))
        return replace(self, buckets=tuple(buckets))

    def read(self, qk: Tensor, qe: Tensor | None) -> tuple[Tensor, ExactGroups]:
        """The readout [B, O, CV, Q] of all buckets, and the groups with usage recorded."""
        results = [bucket.read(self.rules, qk, qe) for bucket in self.buckets]
        readout = torch.cat([readout for readout, _ in results], 1)
        return readout, replace(self, buckets=tuple(bucket for _, bucket in results))

    def remove(self, leaving: set[int]) -> ExactGroups:
        """Removes objects. A bucket is removed with its last object."""
        pairs = [(bucket, bucket.without(leaving)) for bucket in self.buckets]
        ended = [before for before, after in pairs if after is None]
        gone = (
            self.gone[0] + sum(bucket.consolidations for bucket in ended),
            self.gone[1] + sum(bucket.evictions for bucket in ended),
        )
        return replace(self, buckets=tuple(after for _, after in pairs if after is not None), gone=gone)
