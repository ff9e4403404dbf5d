"""XMem's memory with its three stores (sensory, working, long-term; Sec. 2.3, 2.4), plain PyTorch.

``memory.add`` puts a memory frame into working memory. When that holds T_max frames, it is
consolidated: all but the first and the most recent T_min - 1 frames become P prototypes in
long-term memory (prototype selection by usage, potentiation by Eq. 3). Where long-term memory would
exceed its maximum, its least frequently used tokens are evicted first. ``memory.read`` reads
long-term and working memory as one (Eq. 1 and 2) and records how much each token was used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from . import ops as reference_ops
from .checks import Layout, check_labels, expect_known
from .config import MemoryConfig
from .groups_exact import ExactGroups
from .groups_xmem import XMemGroups
from .sensory import Sensory
from .stores import Ops, Rules, Store


class Memory:
    """The three stores of one video, or of a batch of videos that add and read at the same time.

    config: sizes and rules.
    ops: an object with the stateless functions to run on: ``memory_read``, ``select_prototypes``,
        ``consolidate`` and ``evict_lfu`` with the signatures of :mod:`xmemk.reference`. Stores are
        passed as lists of segments, long-term first, never concatenated.

    The first ``add`` fixes B, the channels, H and W, the types and the device. Keys, selections and
    queries have one floating type, values may have another. Shrinkage and usage are float32, or
    float64 with float64 keys. A call that raises has changed nothing.
    """

    def __init__(self, config: MemoryConfig | None = None, *, ops: Ops = reference_ops) -> None:
        self.config = MemoryConfig() if config is None else config
        if not isinstance(self.config, MemoryConfig):
            raise TypeError(f"config: wanted a MemoryConfig, got {type(config).__name__}")
        self.ops = ops
        self.sensory = Sensory(self.config.hidden_dim)
        self._layout: Layout | None = None
        self._groups: ExactGroups | XMemGroups | None = None

    def add(
        self,
        key: Tensor,
        shrinkage: Tensor,
        value: Tensor,
        objects: Sequence[int],
        selection: Tensor | None = None,
    ) -> None:
        """Adds a memory frame; evicts and consolidates where the rules of Sec. 2.3 say so.

        key [B, CK, H, W]. shrinkage [B, 1, H, W], in the key's type or float32. value
        [B, O, CV, H, W], whose row i belongs to ``objects[i]``. objects: the labels, from 1, of all
        objects in the memory and of those that join now (with groups="xmem" in ascending order).
        selection [B, CK, H, W], on every frame or on none, for potentiation.

        Raises ValueError or TypeError for input that does not fit, NaN and Inf included, and
        RuntimeError when long-term memory is full and usage is not counted.
        """
        labels = check_labels("objects", objects)
        layout = Layout.of(key, value, selection) if self._layout is None else self._layout
        if self.config.groups == "xmem" and layout.batch != 1:
            raise ValueError(f'key: wanted a batch of 1 with groups="xmem", got B = {layout.batch}')
        layout.check_add(key, shrinkage, value, labels, selection)
        if not set(self.objects) <= set(labels):
            raise ValueError(f"objects: wanted all that are held, {list(self.objects)}, got {list(labels)}")
        # Copies, so that a caller that reuses its buffers does not write into the memory.
        frame = Store.new(
            key.flatten(2).clone(),
            shrinkage.flatten(2).clone(),
            None if selection is None else selection.flatten(2).clone(),
            count_usage=self.config.enable_long_term,
        )
        groups = self._new_groups(layout) if self._groups is None else self._groups
        self._groups = groups.add(frame, value.flatten(3), labels)
        self._layout = layout

    def read(self, query_key: Tensor, selection: Tensor | None = None) -> Tensor:
        """Reads the memory (Eq. 1) for every token of a frame, and records usage.

        query_key [B, CK, H, W], selection [B, CK, H, W] or None (all ones). Returns
        [B, O, CV, H, W] in the values' type, objects in the order of :attr:`objects`. Every read
        adds 1 to the life of each token it covers, and the mass that it received to its use.

        Raises RuntimeError when there is nothing to read, ValueError or TypeError for a query that
        does not fit.
        """
        if self._layout is None or self._groups is None:
            raise RuntimeError("the memory is empty: call add before read")
        self._layout.check_read(query_key, selection)
        if not self.objects:
            raise RuntimeError("the memory holds no object: all have been removed")
        qe = None if selection is None else selection.flatten(2)
        readout, self._groups = self._groups.read(query_key.flatten(2), qe)
        return readout.unflatten(3, query_key.shape[2:])

    def draft(self) -> Memory:
        """A memory in the same state, whose changes are unseen here.

        Stores are never written, so it shares them.
        """
        draft = copy.copy(self)
        draft.sensory = copy.copy(self.sensory)
        return draft

    def remove(self, objects: Sequence[int]) -> None:
        """Removes objects with their values and sensory rows, the last of a bucket with its keys.

        Reads of the other objects do not change. A removed label may join again as a new object.
        ValueError for a label that is not in the memory. RuntimeError with groups="xmem", where all
        groups share the keys and usage of the first, and the released code has no result to compare
        with.
        """
        leaving = check_labels("objects", objects)
        expect_known("objects", leaving, self.objects)
        if self._groups is not None:
            self._groups = self._groups.remove(set(leaving))
            in_sensory = [label for label in leaving if label in self.sensory.objects]
            if in_sensory:
                self.sensory.remove(in_sensory)

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels of the objects in the memory, in the order in which ``add`` brought them."""
        return () if self._groups is None else self._groups.objects

    @property
    def working_size(self) -> int:
        """Tokens in working memory; with groups="exact" the sum over buckets."""
        return 0 if self._groups is None else self._groups.working_size

    @property
    def long_term_size(self) -> int:
        """Tokens in long-term memory; with groups="exact" the sum over buckets."""
        return 0 if self._groups is None else self._groups.long_term_size

    @property
    def consolidations(self) -> int:
        """Consolidations of working memory; with groups="exact" the sum over buckets."""
        return 0 if self._groups is None else self._groups.consolidations

    @property
    def evictions(self) -> int:
        """Evictions from long-term memory; with groups="exact" the sum over buckets."""
        return 0 if self._groups is None else self._groups.evictions

    @property
    def groups(self) -> ExactGroups | XMemGroups | None:
        """The stores, for inspection and tests; None before the first add."""
        return self._groups

    def __repr__(self) -> str:
        return (
            f"Memory(groups={self.config.groups!r}, objects={list(self.objects)}, working_size={self.working_size}, "
            f"long_term_size={self.long_term_size}, consolidations={self.consolidations}, evictions={self.evictions})"
        )

    def _new_groups(self, layout: Layout) -> ExactGroups | XMemGroups:
        rules = Rules(self.config, self.ops, layout.height * layout.width)
        return ExactGroups(rules) if self.config.groups == "exact" else XMemGroups(rules)
