"""Several videos at a time, each with a memory of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .changes import adoption, commit
from .memory import Memory


def read_batch(
    memories: Sequence[Memory],
    query_keys: Tensor | Sequence[Tensor],
    selections: Tensor | Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """:meth:`Memory.read` for every memory. Where one raises, none of the reads is recorded.

    For a network that runs over a batch of M frames, one of each video. The memories may differ in
    length and objects, and come and go as videos start and end.

    memories: M of them, each with B = 1. query_keys [M, CK, H, W], selections [M, CK, H, W] or
    None; or, for videos of different sizes, sequences of M tensors [1, CK, H, W]. Returns M
    readouts [1, O, CV, H, W], each with the objects of its memory. Raises as Memory.read does,
    naming the memory, and ValueError for lists of different length.
    """
    queries = _each("query_keys", query_keys, len(memories))
    per_memory = [None] * len(memories) if selections is None else _each("selections", selections, len(memories))
    results = []
    for i, (memory, query, selection) in enumerate(zip(memories, queries, per_memory)):
        try:
            results.append(memory.look_up(query, selection))
        except (ValueError, TypeError, RuntimeError) as error:
            raise type(error)(f"memories[{i}]: {error}") from error
    drafts = [memory.recorded(usages) for memory, (_, _, usages) in zip(memories, results)]
    adoptions = [change for memory, draft in zip(memories, drafts) for change in adoption(memory, draft)]
    return commit(adoptions, [readout for readout, _, _ in results])


def _each(name: str, tensors: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    """One [1, CK, H, W] per memory."""
    if isinstance(tensors, Tensor) and tensors.dim() != 4:
        raise ValueError(f"{name}: wanted [M, CK, H, W], got shape {list(tensors.shape)}")
    if len(tensors) != count:
        raise ValueError(f"{name}: wanted one for each of {count} memories, got {len(tensors)}")
    return [tensors[i : i + 1] for i in range(count)] if isinstance(tensors, Tensor) else list(tensors)
