"""A memory of a few whole frames: the first, the last, and an even choice between them."""

from __future__ import annotations

import copy
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
class _FrameGroup:
    """The frames of a group of objects that joined together, oldest first."""

    objects: tuple[int, ...]
    numbers: list[int] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)  # [B, CK, HW]
    values: list[Tensor] = field(default_factory=list)  # [B, O, CV, HW]

    def add(self, number: int, key: Tensor, value: Tensor, most: int) -> None:
        self.numbers.append(number)
        self.keys.append(key)
        self.values.append(value)
        if len(self.numbers) > most:
            dropped = self._most_crowded()
            for frames in (self.numbers, self.keys, self.values):
                del frames[dropped]

    def _most_crowded(self) -> int:
        """The inner frame whose neighbours are closest to each other, the oldest of equals."""
        gaps = [self.numbers[i + 1] - self.numbers[i - 1] for i in range(1, len(self.numbers) - 1)]
        return 1 + gaps.index(min(gaps))


class ThinnedMemory:
    """At most ``frames`` memory frames for each group of objects that joined together.

    When there is one too many, the frame is dropped whose neighbours are closest to each other in
    time. The first and the last always stay.

    read: has the signature of :func:`xmemk.memory_read` and defines the similarity.
    """

    def __init__(self, config: MemoryConfig, read: Callable[..., Any], frames: int = FRAMES) -> None:
        if frames < 2:
            raise ValueError(f"frames: wanted at least 2, the first and the last, got {frames}")
        self.config = config
        self.frames = frames
        self.sensory = Sensory(config.hidden_dim)
        self._read = read
        self._groups: list[_FrameGroup] = []
        self._added = 0

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels in memory, in order of introduction."""
        return tuple(label for group in self._groups for label in group.objects)

    @property
    def numbers(self) -> list[list[int]]:
        """The numbers of the frames in memory, for each group of objects."""
        return [list(group.numbers) for group in self._groups]

    def add(
        self, key: Tensor, shrinkage: Tensor, value: Tensor, objects: Sequence[int], selection: Tensor | None = None
    ) -> None:
        """Adds one frame.

        key: [B, CK, H, W]. value: [B, O, CV, H, W] of ``objects``, which are all labels in memory
        and new ones. Shrinkage and selection are ignored. Raises ValueError for other objects.
        """
        labels = check_labels("objects", objects)
        known = self.objects
        if len(labels) != value.shape[1] or not set(known) <= set(labels):
            raise ValueError(f"objects: wanted {value.shape[1]} labels with all of {list(known)}, got {list(labels)}")
        new = tuple(label for label in labels if label not in known)
        if new:
            self._groups.append(_FrameGroup(new))
        row = {label: i for i, label in enumerate(labels)}
        keys = key.flatten(2).clone()
        for group in self._groups:
            rows = [row[label] for label in group.objects]
            group.add(self._added, keys, value[:, rows].flatten(3), self.frames)
        self._added += 1

    def read(self, query_key: Tensor, selection: Tensor | None = None) -> Tensor:
        """query_key [B, CK, H, W] -> readout [B, O, CV, H, W]. Raises RuntimeError while empty."""
        if not self._groups:
            raise RuntimeError("the memory is empty: call add before read")
        qk = query_key.flatten(2)
        readouts = [self._read(b.keys, None, b.values, qk, None, top_k=self.config.top_k) for b in self._groups]
        return torch.cat(readouts, 1).unflatten(3, query_key.shape[2:])

    def draft(self) -> ThinnedMemory:
        """A memory in the same state, whose changes are unseen here."""
        draft = copy.copy(self)
        draft.sensory = copy.copy(self.sensory)
        draft._groups = [_FrameGroup(g.objects, [*g.numbers], [*g.keys], [*g.values]) for g in self._groups]
        return draft

    def remove(self, objects: Sequence[int]) -> None:
        """Removes objects. Raises ValueError for a label that is not in memory."""
        leaving = check_labels("objects", objects)
        expect_known("objects", leaving, self.objects)
        for group in self._groups:
            stay = [row for row, label in enumerate(group.objects) if label not in leaving]
            group.objects = tuple(group.objects[row] for row in stay)
            group.values = [value[:, stay] for value in group.values]
        self._groups = [group for group in self._groups if group.objects]
        in_sensory = [label for label in leaving if label in self.sensory.objects]
        if in_sensory:
            self.sensory.remove(in_sensory)

    def __repr__(self) -> str:
        return f"ThinnedMemory(objects={list(self.objects)}, frames={[len(b.numbers) for b in self._groups]})"
