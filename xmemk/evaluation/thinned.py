"""A memory of a bounded number of whole frames: the first, the last, and an even choice of those between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..reference import Sensory
from ..reference.checks import check_labels, expect_known
from ..reference.config import MemoryConfig

FRAMES = 50  # "using 50 memory frames in STM as a baseline" (Sec. 3.1)


@dataclass
class _Bucket:
    """The frames of the objects that joined together, oldest first."""

    objects: tuple[int, ...]
    numbers: list[int] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)  # [B, CK, HW]
    values: list[Tensor] = field(default_factory=list)  # [B, O, CV, HW]

    def add(self, number: int, key: Tensor, value: Tensor, most: int) -> None:
        self.numbers.append(number)
        self.keys.append(key)
        self.values.append(value)
        if len(self.numbers) > most:
            leaving = self._most_crowded()
            for kept in (self.numbers, self.keys, self.values):
                del kept[leaving]

    def _most_crowded(self) -> int:
        """Neither the first nor the last: the one whose neighbours are nearest to one another, the oldest of equals."""
        gaps = [self.numbers[i + 1] - self.numbers[i - 1] for i in range(1, len(self.numbers) - 1)]
        return 1 + gaps.index(min(gaps))


class ThinnedMemory:
    """At most ``frames`` memory frames for each group of objects that joined together.

    read: like :func:`xmemk.memory_read`; it decides on the similarity. Which frame goes when there is one too many
    depends on their order alone: the one whose neighbours are nearest to one another in time.
    """

    def __init__(self, config: MemoryConfig, read: Callable[..., Any], frames: int = FRAMES) -> None:
        if frames < 2:
            raise ValueError(f"frames: wanted at least 2, the first and the last, got {frames}")
        self.config = config
        self.frames = frames
        self.sensory = Sensory(config.hidden_dim)
        self._read = read
        self._buckets: list[_Bucket] = []
        self._added = 0

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels held, in order of introduction."""
        return tuple(label for bucket in self._buckets for label in bucket.objects)

    @property
    def numbers(self) -> list[list[int]]:
        """Of each group of objects, which of the frames that were added are held."""
        return [list(bucket.numbers) for bucket in self._buckets]

    def add(
        self, key: Tensor, shrinkage: Tensor, value: Tensor, objects: Sequence[int], selection: Tensor | None = None
    ) -> None:
        """One frame: key [B, CK, H, W], value [B, O, CV, H, W] of ``objects``, all that are held and new ones.
        Shrinkage and selection are not kept. ValueError where the objects do not fit.
        """
        labels = check_labels("objects", objects)
        known = self.objects
        if len(labels) != value.shape[1] or not set(known) <= set(labels):
            raise ValueError(f"objects: wanted {value.shape[1]} labels with all of {list(known)}, got {list(labels)}")
        new = tuple(label for label in labels if label not in known)
        if new:
            self._buckets.append(_Bucket(new))
        row = {label: i for i, label in enumerate(labels)}
        keys = key.flatten(2).clone()
        for bucket in self._buckets:
            rows = [row[label] for label in bucket.objects]
            bucket.add(self._added, keys, value[:, rows].flatten(3), self.frames)
        self._added += 1

    def read(self, query_key: Tensor, selection: Tensor | None = None) -> Tensor:
        """query_key [B, CK, H, W] -> readout [B, O, CV, H, W]. RuntimeError where nothing is held."""
        if not self._buckets:
            raise RuntimeError("the memory is empty: call add before read")
        qk = query_key.flatten(2)
        readouts = [self._read(b.keys, None, b.values, qk, None, top_k=self.config.top_k) for b in self._buckets]
        return torch.cat(readouts, 1).unflatten(3, query_key.shape[2:])

    def remove(self, objects: Sequence[int]) -> None:
        """Objects leave. ValueError for a label that is not held."""
        leaving = check_labels("objects", objects)
        expect_known("objects", leaving, self.objects)
        for bucket in self._buckets:
            stay = [row for row, label in enumerate(bucket.objects) if label not in leaving]
            bucket.objects = tuple(bucket.objects[row] for row in stay)
            bucket.values = [value[:, stay] for value in bucket.values]
        self._buckets = [bucket for bucket in self._buckets if bucket.objects]
        in_sensory = [label for label in leaving if label in self.sensory.objects]
        if in_sensory:
            self.sensory.remove(in_sensory)

    def __repr__(self) -> str:
        return f"ThinnedMemory(objects={list(self.objects)}, frames={[len(b.numbers) for b in self._buckets]})"
