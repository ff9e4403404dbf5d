"""XMem's memory over the ranks of a group."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..memory.checks import check_labels, expect_known, expect_tensor
from ..memory.sensory import SensoryMemory
from ..reference.config import MemoryConfig
from . import files
from .local import LocalMemory, arenas_of
from .objects import ObjectColumns
from .shards import Shards


class Memory:
    """:class:`xmemk.Memory` over several ranks.

    Every rank makes the same calls with the same frames.

    group: a ``torch.distributed`` process group or one-dimensional ``DeviceMesh``, over whose ranks
        the tokens are sharded; or a ``DeviceMesh`` with the dimensions "tokens" and "objects":
        ranks along "objects" hold the values of different objects. None: this process alone.
    config, backend, check_finite: as for :class:`xmemk.Memory`; groups="exact" alone.

    Each rank holds a slice of every frame and an equal share of long-term memory. The tokens that
    are selected, kept and evicted do not depend on the number of ranks; readouts do by rounding.
    B is 1. Sensory memory is held by every rank. A rank that cannot reach the others within the
    group's timeout raises RuntimeError. A call that raises has changed nothing on the ranks where
    it raises.
    """

    def __init__(
        self,
        config: MemoryConfig | None = None,
        *,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        backend: str = "auto",
        check_finite: bool | None = None,
    ) -> None:
        tokens, objects = groups_of(group)
        self.shards, self.columns = Shards(tokens), ObjectColumns(Shards(objects))
        self.local = LocalMemory(self.shards, config, backend, check_finite)
        self.config = self.local.config
        if self.config.groups != "exact":
            raise ValueError('groups: wanted "exact"; a sharded memory does not keep the released bookkeeping')
        self.sensory = SensoryMemory(self.config.hidden_dim)

    def add(
        self,
        key: Tensor,
        shrinkage: Tensor,
        value: Tensor,
        objects: Sequence[int],
        selection: Tensor | None = None,
    ) -> None:
        """:meth:`xmemk.Memory.add`, with the same frame on every rank."""
        labels = check_labels("objects", objects)
        expect_tensor("key", key, ndim=4)
        expect_tensor("value", value, ndim=5)
        for shards in (self.shards, self.columns.shards):
            shards.expect_equal("shape of key and value, objects", [*key.shape, *value.shape, *labels], key.device)
        if key.shape[0] != 1:
            raise ValueError(f"key: wanted a batch of 1 in a sharded memory, got B = {key.shape[0]}")
        if value.shape[1] != len(labels):
            raise ValueError(f"value: wanted O = {len(labels)} as in objects, got shape {list(value.shape)}")
        if not set(self.objects) <= set(labels):
            raise ValueError(f"objects: wanted all that are held, {list(self.objects)}, got {list(labels)}")
        columns = self.columns.with_new(labels)
        rows = [row for row, label in enumerate(labels) if label in columns.mine]
        if rows:
            self.local.add(key, shrinkage, value[:, rows], [labels[row] for row in rows], selection)
        self.columns = columns

    def read(self, query_key: Tensor, selection: Tensor | None = None) -> Tensor:
        """:meth:`xmemk.Memory.read` of all objects, with the same query on every rank."""
        if not self.objects:
            raise RuntimeError("the memory holds no object: call add before read")
        readout = self.local.read(query_key, selection) if self.columns.mine else None
        return self.columns.gather(readout, query_key)

    def remove(self, objects: Sequence[int]) -> None:
        """:meth:`xmemk.Memory.remove`"""
        leaving = check_labels("objects", objects)
        expect_known("objects", leaving, self.objects)
        if mine := [label for label in leaving if label in self.columns.mine]:
            self.local.remove(mine)
        if in_sensory := [label for label in leaving if label in self.sensory.objects]:
            self.sensory.remove(in_sensory)
        self.columns = self.columns.without(leaving)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file per rank and, last, ``path``, which names them (JSON).

        All or nothing: an old set stays until the new one is complete. Called by every rank.
        OSError, on every rank, where a rank could not write.
        """
        files.write(path, self.local, self.columns, self.sensory)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str | None = None,
        *,
        group: dist.ProcessGroup | DeviceMesh | None = None,
        backend: str = "auto",
        check_finite: bool | None = None,
    ) -> Memory:
        """The memory that :meth:`save` wrote from any number of ranks, over the ranks of ``group``.

        Called by every rank. ValueError, naming the file, for a set that is damaged or incomplete.
        """
        with files.opened(path, device) as saved:
            memory = cls(saved.config, group=group, backend=backend, check_finite=check_finite)
            memory.columns = memory.columns.with_new(saved.labels)
            saved.fill(memory.local, memory.columns.mine)
            memory.sensory = saved.sensory()
        return memory

    @property
    def objects(self) -> tuple[int, ...]:
        """The labels of all objects, in the order in which ``add`` brought them."""
        return self.columns.labels

    @property
    def working_size(self) -> int:
        """Tokens in working memory, of all ranks that share this rank's objects."""
        return sum(len(arena.frames) * arena.whole_frame for arena in arenas_of(self.local))

    @property
    def long_term_size(self) -> int:
        """Tokens in long-term memory, of all ranks that share this rank's objects."""
        return sum(arena.total_long_term for arena in arenas_of(self.local))

    @property
    def consolidations(self) -> int:
        """Consolidations of this rank's objects."""
        return self.local.consolidations

    @property
    def evictions(self) -> int:
        """Evictions of this rank's objects."""
        return self.local.evictions

    @property
    def nbytes(self) -> int:
        """Bytes of working and long-term memory on this rank."""
        return self.local.nbytes

    def __repr__(self) -> str:
        return (
            f"distributed.Memory(rank {self.shards.rank} of {self.shards.size}, objects={list(self.objects)}, "
            f"working_size={self.working_size}, long_term_size={self.long_term_size})"
        )


def groups_of(
    group: dist.ProcessGroup | DeviceMesh | None,
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """The groups over which tokens and objects are sharded."""
    if not isinstance(group, DeviceMesh):
        return group, None
    if group.ndim == 1:
        return group.get_group(), None
    if group.mesh_dim_names is None or set(group.mesh_dim_names) != {"tokens", "objects"}:
        raise ValueError(f'group: wanted a mesh with the dimensions "tokens" and "objects", got {group.mesh_dim_names}')
    return group.get_group("tokens"), group.get_group("objects")
