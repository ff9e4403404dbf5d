"""Objects dealt out over ranks: the second dimension of a sharded memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .shards import Shards

_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ObjectColumns:
    """Which rank along the dimension "objects" holds the values of which object. Immutable.

    A new object goes to the rank with the fewest. Objects do not influence each other's readouts,
    so each rank's memory is complete for its own.
    """

    def __init__(self, shards: Shards, holder: dict[int, int] | None = None) -> None:
        self.shards = shards
        self.holder = {} if holder is None else holder

    @property
    def labels(self) -> tuple[int, ...]:
        """All objects, in the order in which they joined."""
        return tuple(self.holder)

    @property
    def mine(self) -> tuple[int, ...]:
        """This rank's objects."""
        return tuple(label for label, rank in self.holder.items() if rank == self.shards.rank)

    def with_new(self, labels: Sequence[int]) -> ObjectColumns:
        """With the objects of ``labels`` that are not held yet."""
        holder = dict(self.holder)
        held = [list(holder.values()).count(rank) for rank in range(self.shards.size)]
        for label in labels:
            if label not in holder:
                holder[label] = held.index(min(held))
                held[holder[label]] += 1
        return ObjectColumns(self.shards, holder)

    def without(self, labels: Sequence[int]) -> ObjectColumns:
        """Without some objects."""
        stay = {label: rank for label, rank in self.holder.items() if label not in labels}
        return ObjectColumns(self.shards, stay)

    def gather(self, readout: Tensor | None, query: Tensor) -> Tensor:
        """Readouts [1, O, CV, H, W] of all ranks' objects as one, in the order of :attr:`labels`.

        readout: of this rank's objects, or None where it has none.
        """
        if self.shards.size == 1:
            assert readout is not None
            return readout
        held = [[label for label, r in self.holder.items() if r == rank] for rank in range(self.shards.size)]
        form = [0, 0] if readout is None else [readout.shape[2], _TYPES.index(readout.dtype)]
        channels, number = max(self.shards.numbers(form, query.device))
        if readout is None:
            readout = query.new_zeros(1, 0, channels, *query.shape[2:], dtype=_TYPES[number])
        padding = readout.new_zeros(1, max(map(len, held)) - readout.shape[1], *readout.shape[2:])
        parts = self.shards.gather(torch.cat([readout, padding], 1))
        row = {label: (rank, i) for rank, labels in enumerate(held) for i, label in enumerate(labels)}
        return torch.stack([parts[rank][:, i] for rank, i in (row[label] for label in self.labels)], 1)
