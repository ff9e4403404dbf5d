"""Blocks of queries, so that no more than some megabytes of intermediate results exist at a time,
and blocks of terms, so that sums stay accurate.

While a compiler traces, there is one block: the compiler plans memory itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from .operands import Operands

# Bytes of similarity at a time: enough for an efficient matrix product, and within the caches.
BLOCK_BYTES = {"cpu": 16 << 20}
_BLOCK_BYTES_ELSEWHERE = 256 << 20
_LEAST_QUERIES = 64  # of a block of similarity
_LEAST_TERMS = 32  # of a sum


def query_blocks(sides: Operands) -> Iterator[tuple[int, int]]:
    """Ranges of queries whose similarity fits the block."""
    b, q, _ = sides.query.shape
    step = q
    if not torch.compiler.is_compiling():
        room = BLOCK_BYTES.get(sides.query.device.type, _BLOCK_BYTES_ELSEWHERE)
        step = min(q, max(_LEAST_QUERIES, room // max(1, 4 * b * sides.memory.shape[2])))
    if q == 0 or step == q:
        yield 0, q
        return
    for a in range(0, q, step):
        yield a, min(a + step, q)


def queries_at_a_time(queries: int, floats: int) -> int:
    """How many queries fit the block, at least one, where each needs so many float32 numbers."""
    if torch.compiler.is_compiling():
        return queries
    return max(1, BLOCK_BYTES["cpu"] // max(1, 4 * floats))


def terms_at_a_time(terms: int) -> int:
    """How many of so many terms are added one after the other, before such sums are added.

    Rounding adds up along a chain. Chains of sqrt(terms) keep its worst at what random roundings of
    one long chain come to.
    """
    if torch.compiler.is_compiling():
        return max(1, terms)
    return max(_LEAST_TERMS, math.isqrt(terms))
