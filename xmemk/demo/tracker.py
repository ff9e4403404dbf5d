"""Label propagation through XMem's memory: Eq. 1 with descriptors as keys and masks as values.

The value of a token is the patch of each object's mask under its cell, CV = CELL * CELL channels. A
readout thus has the course of the edge within a cell. The guided filter moves it to the edge in the
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .features import CELL, describe, grid_size, shrinkage_of
from .refine import guided_filter, rows_of

# Limits so low that consolidation and eviction happen within the four seconds of the bundled clip.
MEMORY_CONFIG = {
    "top_k": 10,
    "mem_every": 5,
    "max_mid_term_frames": 6,
    "min_mid_term_frames": 3,
    "num_prototypes": 128,
    "max_long_term_elements": 384,
}


class PatchMemory(Protocol):
    """What the tracker needs of a memory.

    h x w the grid; CK, CV the channels of key and value; O objects.
    """

    def add(
        self, key: Tensor, shrinkage: Tensor, value: Tensor, objects: Sequence[int], selection: Tensor | None = None
    ) -> None:
        """[1, CK, h, w], [1, 1, h, w], [1, O, CV, h, w], the O labels, [1, CK, h, w]."""

    def read(self, query_key: Tensor, selection: Tensor) -> Tensor:
        """[1, CK, h, w], [1, CK, h, w] -> [1, O, CV, h, w]."""


class DemoTracker:
    """Follows the objects of a label mask from its frame on.

    memory: an empty memory, for example ``xmemk.Memory(MemoryConfig(**MEMORY_CONFIG))``.
    image: the first frame, uint8 [H, W, 3].
    mask: its labels, uint8 [H, W]; 0 is the background, and there is at least one object.
    mem_every: the distance in frames between two that are added to the memory.
    """

    def __init__(self, memory: PatchMemory, image: Tensor, mask: Tensor, mem_every: int = 5) -> None:
        self.memory = memory
        self.mem_every = mem_every
        self.frame = 0  # frames since the first
        self.remembered: tuple[int, Tensor]  # the last memory frame, and its key [1, CK, h, w]
        self.labels = mask.unique()
        self.labels = self.labels[self.labels != 0]
        self._grid = grid_size(*mask.shape)
        key, selection = describe(image, self._grid)
        self._remember(key, selection, mask)

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels that are followed, ascending."""
        return tuple(self.labels.tolist())

    def step(self, image: Tensor) -> Tensor:
        """The labels, uint8 [H, W], of the next frame, uint8 [H, W, 3]."""
        self.frame += 1
        key, selection = describe(image, self._grid)
        readout = self.memory.read(key, selection)
        soft = F.pixel_shuffle(readout.transpose(1, 2)[0].transpose(0, 1), CELL).transpose(0, 1)
        soft = F.interpolate(soft, image.shape[:2], mode="bilinear")[0]
        row = rows_of(guided_filter(image, soft))
        mask = torch.cat([self.labels.new_zeros(1), self.labels])[row.long()]
        if self.frame % self.mem_every == 0:
            self._remember(key, selection, mask)
        return mask

    def _remember(self, key: Tensor, selection: Tensor, mask: Tensor) -> None:
        # The decided mask, not the soft one, whose uncertainty would grow with each memory frame.
        h, w = self._grid
        one_hot = (mask == self.labels[:, None, None]).float()[:, None]
        fine = F.interpolate(one_hot, (h * CELL, w * CELL), mode="area")
        value = F.pixel_unshuffle(fine, CELL)[None]
        self.remembered = self.frame, key
        self.memory.add(key, shrinkage_of(value), value, self.objects, selection)
