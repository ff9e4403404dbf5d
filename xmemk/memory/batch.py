"""Several videos at a time, each with a memory of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .memory import Memory


def read_batch(
    memories: Sequence[Memory],
    query_keys: Tensor | Sequence[Tensor],
    selections: Tensor | Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """:meth:`Memory.read` for every memory, recorded for all of them or, where one raises, for none.

    The network runs over a batch of M frames, one of each video; the memories are as long as each of their videos made
    them, hold different objects, and come and go as videos start and end.

    memories: M of them, each with B = 1. query_keys [M, CK, H, W], selections [M, CK, H, W] or None; or, for videos of
    different sizes, sequences of M tensors [1, CK, H, W]. Returns M readouts [1, O, CV, H, W], each with the objects of
    its memory. Raises as Memory.read does, naming the memory, and ValueError for lists of different length.
    """
    queries = _each("query_keys", query_keys, len(memories))
    chosen = [None] * len(memories) if selections is None else _each("selections", selections, len(memories))
    found = []
    for i, (memory, query, selection) in enumerate(zip(memories, queries, chosen)):
        try:
            found.append(memory.look_up(query, selection))
        except (ValueError, TypeError, RuntimeError) as error:
            raise type(error)(f"memories[{i}]: {error}") from error
    for _, groups, usages in found:
        groups.record(usages)
    return [readout for readout, _, _ in found]


def _each(name: str, given: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    if isinstance(given, Tensor) and given.dim() != 4:
        raise ValueError(f"{name}: wanted [M, CK, H, W], got shape {list(given.shape)}")
    if len(given) != count:
        raise ValueError(f"{name}: wanted one for each of {count} memories, got {len(given)}")
    return [given[i : i + 1] for i in range(count)] if isinstance(given, Tensor) else list(given)
