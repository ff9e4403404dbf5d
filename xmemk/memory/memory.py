"""XMem's feature memory with its three stores: sensory, working, long-term (Sec. 2.3 and 2.4).

``memory.add`` puts a memory frame into working memory. When that holds T_max frames, it is
consolidated: all but the first and the most recent T_min - 1 frames become P prototypes in
long-term memory (prototype selection by usage, potentiation by Eq. 3). Where long-term memory would
exceed its maximum, its least frequently used tokens are evicted first. ``memory.read`` reads
long-term and working memory as one (Eq. 1 and 2) and records how much each token was used.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..inputs import QueryInputs
from ..reference.config import MemoryConfig
from . import files
from .changes import adoption, commit
from .checks import FrameLayout, check_labels, expect_known
from .exact import SeparateGroups
from .functions import PUBLIC
from .graph import Captures
from .rules import FrameTokens, MemoryRules
from .sensory import SensoryMemory
from .shared import SharedGroups
from .state import Groups

# Larger values would become Inf. Values of 8 bits have scales in float32.
LARGEST_STORED = {name: torch.finfo(getattr(torch, name)).max for name in ("float16", "bfloat16")}
LARGEST_STORED |= dict.fromkeys(("int8", "float8_e4m3fn"), torch.finfo(torch.float32).max)


class Memory:
    """The three stores of one video, or of a batch of videos that add and read at the same time.

    config: sizes and rules.
    backend: as for the public functions, "auto" or a name. Selection and eviction are left to
        "auto" where the named backend has no kernels for them (as "triton").
    check_finite: whether keys, shrinkage, values, selections and queries are searched for NaN and
        Inf. None means on the CPU only, because elsewhere each check waits for the device.
        Unchecked, a key or shrinkage that is not finite is never read, and a value that is not
        finite spoils the readouts that select its token.
    functions: an object with the stateless functions to run on, for measuring and testing.
    cuda_graphs: whether top-k reads of the Triton kernels are replayed from a CUDA graph. That
        takes the host fewer launches, and the GPU the memory of one read per bucket of objects (not
        counted in :attr:`nbytes`). Results are bit-exact. Other reads, such as those on a CPU, use
        no graph.

    The first ``add`` fixes B, the channels, H and W, the types and the device, and allocates all
    that the configuration can ever need (:attr:`nbytes`). From then on frames, prototypes and
    survivors are written in place and read as views. Objects that join at a later frame get storage
    of their own. Keys, selections and queries have one floating type, values may have another.
    Shrinkage and usage are float32, or float64 with float64 keys. Stored tensors carry no gradient.
    A call that raises has changed nothing.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        backend: str = "auto",
        check_finite: bool | None = None,
        functions: Any = PUBLIC,
        cuda_graphs: bool = False,
    ) -> None:
        self.config = MemoryConfig() if config is None else config
        if not isinstance(self.config, MemoryConfig):
            raise TypeError(f"config: wanted a MemoryConfig, got {type(config).__name__}")
        if not isinstance(cuda_graphs, bool):
            raise TypeError(f"cuda_graphs: wanted a bool, got {cuda_graphs!r}")
        self.cuda_graphs = cuda_graphs
        self.backend = backend
        self.check_finite = check_finite
        self.functions = functions
        self.sensory = SensoryMemory(self.config.hidden_dim)
        self._layout: FrameLayout | None = None
        self._groups: Groups | None = None

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
        layout = FrameLayout.of(key, value, selection) if self._layout is None else self._layout
        if self.config.groups == "xmem" and layout.batch != 1:
            raise ValueError(f'key: wanted a batch of 1 with groups="xmem", got B = {layout.batch}')
        largest = math.inf if self.config.value_dtype is None else LARGEST_STORED[self.config.value_dtype]
        finite = self._checks_finite(layout)
        layout.check_add(key, shrinkage, value, labels, selection, finite=finite, largest_value=largest)
        if not set(self.objects) <= set(labels):
            raise ValueError(f"objects: wanted all that are held, {list(self.objects)}, got {list(labels)}")
        draft = self.draft()
        draft._layout = layout
        if draft._groups is None:
            draft._groups = self._new_groups(layout)
        frame = FrameTokens(key.flatten(2), shrinkage.flatten(2), None if selection is None else selection.flatten(2))
        draft._groups.add(frame, value.flatten(3), labels)
        commit(adoption(self, draft))

    def read(self, query_key: Tensor, selection: Tensor | None = None) -> Tensor:
        """Reads the memory (Eq. 1) for every token of a frame, and records usage.

        query_key [B, CK, H, W], selection [B, CK, H, W] or None (all ones). Returns
        [B, O, CV, H, W] in the values' type, objects in the order of :attr:`objects`. Every read
        adds 1 to the life of each token it covers, and the mass that it received to its use.

        Raises RuntimeError when there is nothing to read, ValueError or TypeError for a query that
        does not fit.
        """
        readout, _, usages = self.look_up(query_key, selection)
        return commit(adoption(self, self.recorded(usages)), readout)

    def look_up(self, query_key: Tensor, selection: Tensor | None) -> tuple[Tensor, Groups, list[Tensor | None]]:
        """:meth:`read` without recording usage.

        Returns the readout, the groups, and the usage for the ``record`` of the groups.
        """
        if self._layout is None or self._groups is None:
            raise RuntimeError("the memory is empty: call add before read")
        self._layout.check_read(query_key, selection, finite=self._checks_finite(self._layout))
        if not self.objects:
            raise RuntimeError("the memory holds no object: all have been removed")
        queries = QueryInputs(query_key.flatten(2), None if selection is None else selection.flatten(2))
        readout, usages = self._groups.read(queries)
        return readout.unflatten(3, query_key.shape[2:]), self._groups, usages

    def recorded(self, usages: Sequence[Tensor | None]) -> Memory:
        """A draft in which a read with the usage of :meth:`look_up` is recorded."""
        draft = self.draft()
        assert draft._groups is not None
        draft._groups.record(usages)
        return draft

    def draft(self) -> Memory:
        """A memory on the same storage, whose changes are unseen here until it is adopted.

        A step of several calls is made in a draft, and adopted at one moment
        (:func:`.changes.commit`) or not at all. A draft takes reads and then at most one ``add``,
        after which it must be adopted or dropped before it or this memory is used again.
        """
        draft = copy.copy(self)
        draft.sensory = copy.copy(self.sensory)
        draft._groups = None if self._groups is None else self._groups.fork()
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
        draft = self.draft()
        if draft._groups is not None:
            in_sensory = [label for label in leaving if label in draft.sensory.objects]
            if in_sensory:
                draft.sensory.remove(in_sensory)
            draft._groups.remove(set(leaving))
        commit(adoption(self, draft))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the whole memory to a safetensors file for :meth:`load`; replaces an old file.

        Needs the package safetensors (``pip install 'xmemk[memory]'``). All or nothing: a temporary
        file beside ``path`` is written and renamed. One that a killed process left there is
        removed. OSError where writing fails, such as on a full disk.
        """
        files.write(path, self.config, self._layout, self._groups, self.sensory)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str | None = None,
        *,
        backend: str = "auto",
        check_finite: bool | None = None,
        cuda_graphs: bool = False,
    ) -> Memory:
        """The memory that :meth:`save` wrote, on its old device or another.

        On the same kind of device it resumes bit-exactly. ValueError, naming the file, where the
        file is cut off, is no memory, has another version of the format, is inconsistent, or has
        NaN or Inf, which ``check_finite=False`` admits. OSError where it cannot be read.
        """
        graphs = Captures() if cuda_graphs else None
        finite = check_finite is not False
        config, layout, groups, sensory = files.read(path, device, backend, graphs, finite=finite)
        memory = cls(config, backend=backend, check_finite=check_finite, cuda_graphs=cuda_graphs)
        memory.sensory, memory._layout, memory._groups = sensory, layout, groups
        return memory

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
    def nbytes(self) -> int:
        """Bytes of working and long-term memory. They change only when objects join or leave.

        Without long-term memory they also change when a block of frames is added.
        """
        return 0 if self._groups is None else self._groups.nbytes

    @property
    def groups(self) -> Groups | None:
        """The stores, for inspection and tests; None before the first add."""
        return self._groups

    def __repr__(self) -> str:
        return (
            f"Memory(groups={self.config.groups!r}, objects={list(self.objects)}, working_size={self.working_size}, "
            f"long_term_size={self.long_term_size}, consolidations={self.consolidations}, evictions={self.evictions})"
        )

    def _checks_finite(self, layout: FrameLayout) -> bool:
        return layout.device.type == "cpu" if self.check_finite is None else self.check_finite

    def _new_groups(self, layout: FrameLayout) -> Groups:
        graphs = Captures() if self.cuda_graphs else None
        rules = MemoryRules(self.config, layout, self.backend, self.functions, graphs)
        return SeparateGroups(rules) if self.config.groups == "exact" else SharedGroups(rules)
