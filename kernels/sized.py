"""The top-k read of a memory whose size is on the device, so that one CUDA graph serves it while it grows.

Segments are storage of fixed places and sizes, of which some tokens are held. A table [MOST_SEGMENTS, COLUMNS] int64 on
the device says which. Its row for a segment, in the order in which segments are read, has five numbers: that of the
segment's first token; that of the token which lies first in the keys' storage (less than 0 where that one is not held);
the same two for the values' storage; and the number behind the segment's last token. A segment may be empty, and
several may lie in the same storage.

Launches are those of a memory that fills its storage. Programs whose tokens are not held leave at once. Sums are made in
the order in which a read of views of the same tokens makes them, so the results are the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .ops import readout_topk
from .ops.affinity_topk import select
from .ops.affinity_topk_groups import GROUP
from .structs import MOST_SEGMENTS, Segments, ValueArgs, encode, memory_args, query_args, strides
from .tiles import number

COLUMNS = 6  # the last one unused: rows of 48 bytes, so that every pair of numbers lies at a multiple of 16
_KEYS, _VALUES, _END = 0, 2, 4  # where a row's numbers begin


def fits(tokens: int, top_k: int) -> bool:
    """Whether so many tokens are read by groups, as here; of fewer all are candidates (affinity_topk.py)."""
    return tokens > top_k * GROUP


def new_table(like: Tensor) -> Tensor:
    return torch.zeros((MOST_SEGMENTS, COLUMNS), dtype=torch.int64, device=like.device)


def rows(segments: Sequence[tuple[int, int, int]]) -> list[int]:
    """The table of segments (tokens held, first of them in the keys' storage, and in the values'), as a list."""
    numbers: list[int] = []
    end = 0
    for tokens, in_keys, in_values in segments:
        start, end = end, end + tokens
        numbers += [start, start - in_keys, start, start - in_values, end, 0]
    return numbers


def write(table: Tensor, numbers: list[int]) -> None:
    """Writes :func:`rows` into the table.

    Values are kernel arguments: no copy, no synchronisation. Launches already queued keep their own.
    """
    write_numbers[(1,)](table, tuple(encode(n) for n in numbers), num_warps=1)


def memory_read(
    memory: MemoryInputs, table: Tensor, capacity: int, queries: QueryInputs, top_k: int, return_usage: bool
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q]; usage [B, capacity], that of the tokens held, then 0, or None.

    memory: MOST_SEGMENTS segments, none of zero size; at most ``capacity`` tokens are held at a time.
    """
    mk, mv = tuple(memory.mk), tuple(memory.mv)
    in_keys, in_values, ends = (
        tuple(table[i, column:] for i in range(MOST_SEGMENTS)) for column in (_KEYS, _VALUES, _END)
    )
    args = memory_args(mk, tuple(memory.ms or ()), in_keys, ends)
    segments = Segments(args, capacity, capacity, (in_keys, ends))
    weight, index, usage = select(segments, query_args(queries), top_k, return_usage, by_groups=True)
    return readout_topk.read(ValueArgs(mv, in_values, ends, *strides(mv)), weight, index), usage


@triton.jit
def write_numbers(table: tl.tensor, numbers: tl.tuple) -> None:
    for i in tl.static_range(len(numbers)):
        tl.store(table + i, number(numbers[i]).to(tl.int64))
