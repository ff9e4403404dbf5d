"""Synthetic frames and small configurations for the tests of xmemk.Memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from xmemk import Memory, MemoryConfig
from xmemk.memory.bank import Bank
from xmemk.memory.table import Table

CK, CV, H, W = 4, 3, 2, 3
LABELS = 9  # objects that a frame has values for


def frame(
    t: int,
    objects: Sequence[int] = (1, 2),
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    h: int = H,
    w: int = W,
) -> dict[str, Any]:
    """Arguments of ``add`` for frame t.

    An object's values do not depend on which others there are.
    """
    g = torch.Generator().manual_seed(t)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    key, shrinkage = normal(batch, CK, h, w), 1 + normal(batch, 1, h, w).square()
    selection, values = normal(batch, CK, h, w).sigmoid(), normal(batch, LABELS, CV, h, w)
    return {
        "key": key.to(dtype),
        "shrinkage": shrinkage.to(dtype),
        "value": values[:, [label - 1 for label in objects]].to(dtype),
        "objects": list(objects),
        "selection": selection.to(dtype),
    }


def query(t: int, **options: Any) -> dict[str, Tensor]:
    """Arguments of ``read`` for frame t."""
    x = frame(1000 + t, **options)
    return {"query_key": x["key"], "selection": x["selection"]}


def small(groups: str = "exact", **changes: Any) -> MemoryConfig:
    """Limits that consolidate every third frame, and soon evict."""
    parameters: dict[str, Any] = {
        "top_k": 4,
        "max_mid_term_frames": 5,
        "min_mid_term_frames": 2,
        "num_prototypes": 3,
        "max_long_term_elements": 10,
    }
    return MemoryConfig(**parameters | changes, groups=groups)


def run(memory: Memory, first: int, last: int, joins: dict[int, int] | None = None, **options: Any) -> list[Tensor]:
    """Reads and adds frames first to last - 1.

    joins: label -> its first frame. Returns the readouts.
    """
    joins = joins or {1: 0, 2: 0}
    readouts = []
    for t in range(first, last):
        if memory.objects:
            readouts.append(memory.read(**query(t, **options)))
        memory.add(**frame(t, [label for label, since in joins.items() if since <= t], **options))
    return readouts


def numbers(memory: Memory) -> list[Any]:
    """A copy of all that a memory stores and counts."""
    groups: Any = memory.groups
    if groups is None:
        return [repr(memory), memory.sensory.objects]
    arenas = [bucket.arena for bucket in groups.buckets] if hasattr(groups, "buckets") else [groups.arena]
    state = [repr(memory), memory.sensory.objects, memory.objects, memory.nbytes]
    for arena in arenas:
        state += [arena.reads, stored(arena.table, arena.banks.values())]
    for group in getattr(groups, "late", []):
        state += [group.objects, stored(group.table, group.values.banks)]
    return state


def stored(table: Table, banks: Iterable[Bank]) -> list[Any]:
    """A copy of positions and tokens."""
    runs = table.runs()
    tensors = [bank.rows(r).clone() for bank in banks for r in runs if r.stop <= bank.blocks[r.block].shape[1]]
    return [table.long, list(table.slots), list(table.frames), *tensors]


def same(a: Any, b: Any) -> bool:
    """Whether two results of :func:`numbers` agree bit for bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
