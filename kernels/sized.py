"""The top-k read of a memory whose size is on the device, so that one CUDA graph serves it while it grows.

Segments are storage of fixed places and sizes, of which some tokens are held. A table [SEGMENTS, COLUMNS] int64 on the
device says which: for each segment, in the order in which they are read, the number of its first token, that of the
token which lies first in the keys' storage (less than 0 where that one is not held), the same two for the values'
storage, and the number behind its last token. A segment may be empty, and several may lie in the same storage.

Launches are those of a memory that fills its storage; programs of tokens that are not there leave at once, and every
sum is made in the order in which a read of views of the same tokens makes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import topk_readout
from .bank import SEGMENTS, Memory, Queries
from .topk_affinity import choose
from .topk_groups import GROUP

COLUMNS = 6  # the last one unused: rows of 48 bytes, so that every pair of numbers lies at a multiple of 16


def fits(tokens: int, top_k: int) -> bool:
    """Whether a read of so many tokens is made by groups, as here; of fewer it takes another way."""
    return tokens > top_k * GROUP


def new_table(like: Tensor) -> Tensor:
    return torch.zeros((SEGMENTS, COLUMNS), dtype=torch.int64, device=like.device)


def rows(segments: Sequence[tuple[int, int, int]]) -> list[int]:
    """The table of segments (tokens held, first of them in the keys' storage, and in the values'), as a list."""
    numbers: list[int] = []
    end = 0
    for tokens, in_keys, in_values in segments:
        start, end = end, end + tokens
        numbers += [start, start - in_keys, start, start - in_values, end, 0]
    return numbers


def write(table: Tensor, numbers: list[int]) -> None:
    """Numbers go with the launch, so nothing waits for them, and what was launched before has those of then."""
    write_numbers[(1,)](table, tuple(16 * n + 2 for n in numbers), len(numbers), num_warps=1)


def memory_read(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    table: Tensor,
    capacity: int,
    qk: Tensor,
    qe: Tensor | None,
    top_k: int,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q]; usage [B, capacity], that of the tokens held, then 0, or None.

    mk, ms, mv: SEGMENTS segments as lists, none of zero size; at most ``capacity`` tokens are held at a time.
    """
    starts, of_values, ends = (tuple(table[i, at:] for i in range(SEGMENTS)) for at in (0, 2, 4))
    memory = Memory(tuple(mk), () if ms is None else tuple(ms), starts, ends, capacity, capacity)
    weight, index, usage = choose(memory, Queries(qk, qe), top_k, return_usage, True)
    return topk_readout.read(tuple(mv), of_values, ends, weight, index), usage


@triton.jit
def write_numbers(table, numbers, COUNT: tl.constexpr):
    for i in tl.static_range(COUNT):
        tl.store(table + i, (numbers[i] >> 4).to(tl.int64))
