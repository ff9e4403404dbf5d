"""Made-up frames and small configurations for the tests of xmemk.Memory."""

import dataclasses

import torch

from xmemk import MemoryConfig

CK, CV, H, W = 4, 3, 2, 3


def frame(t, objects=(1, 2), dtype=torch.float32, batch=1, h=H, w=W):
    """Arguments of ``add``; an object's values do not depend on which others are there."""
    g = torch.Generator().manual_seed(t)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    key, shrinkage = normal(batch, CK, h, w), 1 + normal(batch, 1, h, w).square()
    selection, values = normal(batch, CK, h, w).sigmoid(), normal(batch, 9, CV, h, w)
    return {
        "key": key.to(dtype),
        "shrinkage": shrinkage.to(dtype),
        "value": values[:, [label - 1 for label in objects]].to(dtype),
        "objects": list(objects),
        "selection": selection.to(dtype),
    }


def query(t, **options):
    x = frame(1000 + t, **options)
    return {"query_key": x["key"], "selection": x["selection"]}


def small(groups="exact", **changes):
    parameters = {
        "top_k": 4,
        "max_mid_term_frames": 5,
        "min_mid_term_frames": 2,
        "num_prototypes": 3,
        "max_long_term_elements": 10,
    }
    return MemoryConfig(**parameters | changes, groups=groups)


def run(memory, first, last, joins=None, **options):
    """Frames first to last - 1 with a read each; ``joins``: label -> its first frame. Returns what was read."""
    joins = joins or {1: 0, 2: 0}
    readouts = []
    for t in range(first, last):
        if memory.objects:
            readouts.append(memory.read(**query(t, **options)))
        memory.add(**frame(t, [label for label, since in joins.items() if since <= t], **options))
    return readouts


def numbers(memory):
    """All that a memory holds and counts, copied."""
    groups = memory.groups
    if groups is None:
        return [repr(memory), memory.sensory.objects]
    parts = [bucket.arena for bucket in groups.buckets] if hasattr(groups, "buckets") else [groups.arena]
    state = [repr(memory), memory.sensory.objects, memory.objects, memory.nbytes]
    for arena in parts:
        state += [arena.reads, held(arena.table, arena.banks.values())]
    for group in getattr(groups, "late", []):
        state += [group.objects, held(group.table, group.values.banks)]
    return state


def held(table, banks):
    runs = table.runs()
    tensors = [bank.rows(r).clone() for bank in banks for r in runs if r.stop <= bank.blocks[r.block].shape[1]]
    return [table.long, list(table.slots), list(table.frames), *tensors]


def same(a, b):
    """Whether two results of :func:`numbers` agree to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def with_groups(config, groups):
    return dataclasses.replace(config, groups=groups)
