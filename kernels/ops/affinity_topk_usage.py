"""Usage of a top-k read: weights added to the tokens they fall on, the same to the bit in any order.

A float32 weight of at most 1 is written exactly as w = (x0 + x1 / 2^B + x2 / 2^2B) / 2^B with integers below 2^B (what
is below 2^-3B is rounded). Integers are added atomically; their sums do not depend on the order of the additions. B is
such that sums over Q queries fit 64 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LIMBS = 3  # integers of a weight
SUM_BITS = 62  # of a sum of them, which leaves room for its sign and a rounding
BLOCK = 1024  # tokens of a program

_LIMBS = tl.constexpr(LIMBS)
_BLOCK = tl.constexpr(BLOCK)


def usage_bits(queries: int) -> int:
    """B: the bits of a sum that the number of queries leaves."""
    return SUM_BITS - max(1, queries).bit_length()


def new_sums(like: Tensor, batch: int, tokens: int) -> Tensor:
    return like.new_zeros((batch, LIMBS, tokens), dtype=torch.int64)


def finish(sums: Tensor, bits: int) -> Tensor:
    """[B, LIMBS, N] -> usage [B, N] float32. One launch."""
    b, _, n = sums.shape
    usage = sums.new_empty((b, n), dtype=torch.float32)
    usage_of_sums[(-(-n // BLOCK), b)](sums, usage, n, 2.0**-bits)
    return usage


@triton.jit
def add_usage(
    sums: tl.tensor, token: tl.tensor, weight: tl.tensor, N: tl.tensor, unit: tl.tensor, mask: tl.tensor
) -> None:
    """Adds weights to sums [LIMBS, N] of one batch element; a weight of 0 or NaN adds nothing. ``unit`` is 2^B."""
    rest = tl.where(mask & (weight > 0), weight, 0.0)
    for limb in tl.static_range(_LIMBS):
        rest = rest * unit
        whole = rest.to(tl.int64)
        if limb == _LIMBS - 1:
            whole = (rest + 0.5).to(tl.int64)
        rest = rest - whole.to(tl.float32)
        tl.atomic_add(sums + limb * N + token, whole, mask=mask & (whole != 0), sem="relaxed")


@triton.jit(do_not_specialize=["N"])
def usage_of_sums(sums: tl.tensor, usage: tl.tensor, N: tl.tensor, unit: tl.tensor) -> None:
    """usage [B, N] of sums [B, LIMBS, N]; ``unit`` is 2^-B. Grid [blocks of N, B]."""
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * _BLOCK + tl.arange(0, _BLOCK)
    total = tl.zeros((_BLOCK,), tl.float32)
    for limb in tl.static_range(_LIMBS):
        part = tl.load(sums + (b * _LIMBS + _LIMBS - 1 - limb) * N + token, mask=token < N, other=0)
        total = (total + part.to(tl.float32)) * unit
    tl.store(usage + b * N + token, total, mask=token < N)
