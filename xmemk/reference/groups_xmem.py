"""Groups of objects over shared keys, as the released code keeps them: ``groups="xmem"``.

Twin of :mod:`xmemk.memory.shared`. All groups share one sequence of keys. The V values of a later
group belong to the *last* V keys. With one group this is the paper. With several groups it is how
published numbers were computed. Its defects are kept on purpose, so that results can be reproduced:

* A consolidation keeps a later group's joining frame. That group then has as many values as there
  are keys, so its joining frame is read against the key of the video's first frame.
* A later group of exactly T_min + 1 frames loses one without consolidating it: groups are trimmed
  from T_min + 1 frames on, but contribute candidates only above that.
* Where only some prototypes are valid for a later group, their values are stored without gaps. They
  are then read against the last keys of the batch, which belong to other prototypes.
* Only the reads of the first group count as usage.

Two things differ, where the released code stops with an error: eviction works with several groups,
and a long-term memory exactly at its limit evicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .stores import Rules, Store, last, outside, pick, record


@dataclass(frozen=True)
class XMemGroups:
    """Working and long-term memory with shared keys.

    The batch is 1, because batch elements would lack different values.
    """

    rules: Rules
    groups: tuple[tuple[int, ...], ...] = ()  # labels, by the frame at which they joined
    working: Store | None = None
    working_values: tuple[Tensor, ...] = ()  # per group [1, O, CV, V], V <= N
    long_term: Store | None = None  # None until the first consolidation; may be empty after
    long_term_values: tuple[Tensor, ...] = ()  # per group [1, O, CV, V], V = 0 for a group without any
    consolidations: int = 0
    evictions: int = 0

    @property
    def objects(self) -> tuple[int, ...]:
        return tuple(label for group in self.groups for label in group)

    @property
    def working_size(self) -> int:
        return 0 if self.working is None else self.working.size

    @property
    def long_term_size(self) -> int:
        return 0 if self.long_term is None else self.long_term.size

    def add(self, frame: Store, value: Tensor, objects: tuple[int, ...]) -> XMemGroups:
        """Adds a memory frame. Objects that join now become a group.

        ValueError for labels out of ascending order.
        """
        row = {label: i for i, label in enumerate(objects)}
        known = set(self.objects)
        new = tuple(label for label in objects if label not in known)
        in_order = self.objects + new
        if in_order != tuple(sorted(in_order)):
            raise ValueError(
                'objects: wanted new labels in ascending order and above all earlier ones (groups="xmem"), '
                f"got {list(new)} after {list(self.objects)}"
            )
        values = [
            torch.cat([old, value[:, [row[label] for label in group]]], -1)
            for group, old in zip(self.groups, self.working_values)
        ]
        groups, long_term_values = self.groups, self.long_term_values
        if new:
            groups += (new,)
            values.append(value[:, [row[label] for label in new]])
            if self.long_term is not None:
                long_term_values += (values[-1][..., :0],)
        working = frame if self.working is None else self.working.followed_by(frame)
        memory = replace(
            self, groups=groups, working=working, working_values=tuple(values), long_term_values=long_term_values
        )
        return memory._evict()._consolidate(working) if self.rules.is_full(working) else memory

    def read(self, qk: Tensor, qe: Tensor | None) -> tuple[Tensor, XMemGroups]:
        """The readout [1, O, CV, Q] of all groups, and the groups with usage recorded.

        Usage is that of the first group.
        """
        stores = [store for store in (self.long_term, self.working) if store is not None]
        readouts, usage = [], None
        for g, working_value in enumerate(self.working_values):
            values = [working_value] if self.long_term is None else [self.long_term_values[g], working_value]
            count_usage = g == 0 and self.rules.config.enable_long_term
            readout, counted = self.rules.read(stores, values, qk, qe, count_usage=count_usage)
            readouts.append(readout)
            usage = counted if g == 0 else usage
        *long_term, working = record(stores, usage)
        return torch.cat(readouts, 1), replace(self, working=working, long_term=long_term[0] if long_term else None)

    def remove(self, leaving: set[int]) -> XMemGroups:
        """RuntimeError: all groups share the usage and prototypes of the first."""
        raise RuntimeError(
            f'objects {sorted(leaving)} cannot leave: with groups="xmem" all groups share the keys, usage and '
            'prototypes of the first; use groups="exact"'
        )

    def _evict(self) -> XMemGroups:
        """Sec. 2.3, removing obsolete features: keeps usage strictly above the last token's to go.

        All tokens that tie with it are evicted, too, prototypes that were not read yet among them.
        If all usage is equal, no token stays. A NaN is above nothing and is evicted.
        """
        surplus = self.long_term_size - self.rules.long_term_before_prototypes
        if self.long_term is None or surplus <= 0:
            return self
        usage = self.long_term.usage[0]
        survives = usage > usage.sort().values[surplus - 1]
        return replace(
            self,
            long_term=self.long_term.each(lambda x: x[..., survives]),
            long_term_values=tuple(v[..., last(survives, v.shape[-1])] for v in self.long_term_values),
            evictions=self.evictions + 1,
        )

    def _consolidate(self, working: Store) -> XMemGroups:
        """Sec. 2.3: prototypes by the first group's usage, potentiated (Eq. 3) over own values."""
        ops, values = self.rules.ops, self.working_values
        start, stop = self.rules.candidates(working.size)
        candidates = working.each(lambda x: x[..., start:stop])
        index = ops.select_prototypes(candidates.usage, self.rules.prototypes(stop - start))
        pk = pick(candidates.key, index)
        pe = None if candidates.selection is None else pick(candidates.selection, index)
        # The shrinkage is potentiated as one more value channel, over all candidates.
        ps = ops.memory_read(candidates.key, candidates.shrinkage, candidates.shrinkage[:, None].to(pk.dtype), pk, pe)
        prototypes = self.rules.new_prototypes(pk, ps[:, 0])
        prototype_values = [self._potentiate(candidates, self._contribution(v), index[0], pk, pe) for v in values]
        long_term = prototypes
        if self.long_term is not None:
            long_term = self.long_term.followed_by(prototypes)
            prototype_values = [torch.cat(pair, -1) for pair in zip(self.long_term_values, prototype_values)]
        return replace(
            self,
            working=working.each(lambda x: outside(x, start, stop)),
            working_values=tuple(self._trimmed(v) for v in values),
            long_term=long_term,
            long_term_values=tuple(prototype_values),
            consolidations=self.consolidations + 1,
        )

    def _contribution(self, value: Tensor) -> Tensor:
        """A group's values of candidates: those of the last tokens among them, or none."""
        v = value.shape[-1]
        start, stop = self.rules.candidates(v)
        if v == self.working_size or v > self._one_above_minimum:
            return value[..., start:stop]
        return value[..., :0]

    def _trimmed(self, value: Tensor) -> Tensor:
        """A group's values after consolidation. A short group keeps all of them."""
        v = value.shape[-1]
        return outside(value, *self.rules.candidates(v)) if v >= self._one_above_minimum else value

    @property
    def _one_above_minimum(self) -> int:
        return (self.rules.config.min_mid_term_frames + 1) * self.rules.frame

    def _potentiate(self, candidates: Store, value: Tensor, index: Tensor, pk: Tensor, pe: Tensor | None) -> Tensor:
        """Eq. 3 for one group over its own values, for the prototypes that it has a value for."""
        v = value.shape[-1]
        valid = index >= candidates.size - v
        if not valid.any():
            return value[..., :0]
        pe = None if pe is None else pe[..., valid]
        mk, ms = last(candidates.key, v), last(candidates.shrinkage, v)
        return self.rules.ops.memory_read(mk, ms, value, pk[..., valid], pe)
