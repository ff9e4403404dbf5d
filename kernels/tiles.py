"""What the kernels share: reading tokens and queries, splitting float32 into float16 pairs, tiles of scores.

Loops over the segments of a memory unroll. A token's number comes with the launch, encoded (``structs.encode``). Where
one CUDA graph serves a memory that grows, it comes from the device (sized.py): then ``starts[i]`` points to two numbers,
that of the segment's first token and that of the token which the segment's pointer points to, and ``ends[i]`` to the
number behind its last token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .structs import TILE, MemoryArgs, Place, QueryArgs, SplitOperands

_TILE = tl.constexpr(TILE)

# What power_of_two() holds its result within: 2^-30 and 2^30.
LEAST_POWER = tl.constexpr(2.0**-30)
LARGEST_POWER = tl.constexpr(2.0**30)
_EXPONENT = tl.constexpr(0x7F800000)  # of float32

# x = hi + lo / LOW: float16 has 11 bits, so lo continues where hi ends.
LOW = tl.constexpr(2048.0)


@triton.jit
def number(x: tl.tensor) -> tl.tensor:
    """A number that ``structs.encode`` has encoded, or from the device."""
    if x.dtype.is_ptr():
        return tl.load(x)
    else:  # noqa: RET505  (what follows a return is compiled, too)
        return x >> 4


@triton.jit
def bound(numbers: tl.tuple, i: tl.constexpr) -> tl.tensor:
    """One of ``starts`` or ``ends``."""
    return number(numbers[i])


@triton.jit
def origin(starts: tl.tuple, i: tl.constexpr) -> tl.tensor:
    """The number of the token that the i-th segment's pointer points to."""
    if starts[i].dtype.is_ptr():
        return tl.load(starts[i] + 1)
    else:  # noqa: RET505
        return starts[i] >> 4


@triton.jit
def end_of(memory: MemoryArgs) -> tl.tensor:
    """The number behind the last token."""
    return bound(memory.ends, len(memory.ends) - 1)


@triton.jit
def load_tokens(memory: MemoryArgs, b: tl.tensor, token: tl.tensor, channel: tl.tensor, CK: tl.constexpr) -> tl.tensor:
    """Keys of tokens as rows: token [T] int64, channel [C] -> [T, C], 0 where there is none."""
    rows = tl.zeros((token.shape[0], channel.shape[0]), memory.mk[0].dtype.element_ty)
    for i in tl.static_range(len(memory.mk)):
        here = (token >= bound(memory.starts, i)) & (token < bound(memory.ends, i))
        offset = (token - origin(memory.starts, i))[:, None] * memory.mk_sn[i]
        offset += channel[None, :].to(tl.int64) * memory.mk_sc[i]
        mask = here[:, None] & (channel < CK)[None, :]
        at = memory.mk[i] + b.to(tl.int64) * memory.mk_sb[i] + offset
        rows = tl.where(here[:, None], tl.load(at, mask=mask, other=0.0), rows)
    return rows


@triton.jit
def load_key_channel(memory: MemoryArgs, b: tl.tensor, token: tl.tensor, channel: tl.tensor) -> tl.tensor:
    """One channel of keys: token [T] int64 -> [T] float32, 0 where there is none."""
    numbers = tl.zeros((token.shape[0],), tl.float32)
    b = b.to(tl.int64)  # and with it what it is added to
    for i in tl.static_range(len(memory.mk)):
        here = (token >= bound(memory.starts, i)) & (token < bound(memory.ends, i))
        at = memory.mk[i] + b * memory.mk_sb[i] + (b * 0 + channel) * memory.mk_sc[i]
        at += (token - origin(memory.starts, i)) * memory.mk_sn[i]
        numbers = tl.where(here, tl.load(at, mask=here, other=0.0).to(tl.float32), numbers)
    return numbers


@triton.jit
def load_shrinkage(memory: MemoryArgs, b: tl.tensor, token: tl.tensor) -> tl.tensor:
    """token [T] int64 -> [T] float32; 0 where there is no token, or 1 everywhere where there is no shrinkage."""
    if len(memory.ms) == 0:
        return tl.full((token.shape[0],), 1.0, tl.float32)
    else:  # noqa: RET505
        numbers = tl.zeros((token.shape[0],), tl.float32)
        for i in tl.static_range(len(memory.ms)):
            here = (token >= bound(memory.starts, i)) & (token < bound(memory.ends, i))
            at = memory.ms[i] + b.to(tl.int64) * memory.ms_sb[i]
            at += (token - origin(memory.starts, i)) * memory.ms_sn[i]
            numbers = tl.where(here, tl.load(at, mask=here, other=0.0).to(tl.float32), numbers)
        return numbers


@triton.jit
def token_scale(memory: MemoryArgs, b: tl.tensor, token: tl.tensor, root: tl.tensor) -> tl.tensor:
    """-s / sqrt(CK) of tokens [T] int64, NaN where there is none; ``root`` is 1 / sqrt(CK)."""
    exists = token < 0
    for i in tl.static_range(len(memory.mk)):
        exists = exists | ((token >= bound(memory.starts, i)) & (token < bound(memory.ends, i)))
    return tl.where(exists, -load_shrinkage(memory, b, token) * root, float("nan"))


@triton.jit
def load_queries(
    queries: QueryArgs, b: tl.tensor, query: tl.tensor, Q: tl.tensor, CK: tl.constexpr, CKP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Rows of qk and qe as float32 -> q, e [queries, CKP], 0 beyond Q and CK; e is 1 where there is no selection."""
    channel = tl.arange(0, CKP)
    mask = (query < Q)[:, None] & (channel < CK)[None, :]
    b = b.to(tl.int64)
    row = query.to(tl.int64)[:, None]
    channel = channel[None, :].to(tl.int64)
    at = queries.qk + b * queries.qk_sb + row * queries.qk_sq + channel * queries.qk_sc
    q = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if queries.qe is not None:
        at = queries.qe + b * queries.qe_sb + row * queries.qe_sq + channel * queries.qe_sc
        e = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    else:
        e = tl.where(mask, 1.0, 0.0)
    return q, e


@triton.jit
def is_finite(x: tl.tensor) -> tl.tensor:
    return tl.abs(x) < float("inf")


@triton.jit
def readable(score: tl.tensor) -> tl.tensor:
    """A score that is NaN or +inf counts as -inf."""
    return tl.where(score < float("inf"), score, -float("inf"))


@triton.jit
def power_of_two(x: tl.tensor) -> tl.tensor:
    """The power of two at or below x > 0, at least LEAST_POWER (as of 0 and NaN), at most LARGEST_POWER."""
    clamped = tl.where(x > LEAST_POWER, tl.minimum(x, LARGEST_POWER), LEAST_POWER)
    return (clamped.to(tl.int32, bitcast=True) & _EXPONENT).to(tl.float32, bitcast=True)


@triton.jit
def split(x: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """x float32 -> hi, lo float16 with x = hi + lo / 2048, to 22 bits or 2^-36, whichever is the larger error."""
    hi = x.to(tl.float16)
    return hi, ((x - hi.to(tl.float32)) * LOW).to(tl.float16)


@triton.jit
def in_three_parts(x: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """x float32 -> three bfloat16 that add up to it."""
    hi = x.to(tl.bfloat16)
    rest = x - hi.to(tl.float32)
    mid = rest.to(tl.bfloat16)
    return hi, mid, (rest - mid.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def load_part(ptr: tl.tensor, row: tl.tensor, part: tl.constexpr, CK: tl.constexpr) -> tl.tensor:
    """Part ``part`` of the rows of an operand [rows, 4, CK] -> [rows, CK]."""
    return tl.load(ptr + row.to(tl.int64)[:, None] * (4 * CK) + (part * CK + tl.arange(0, CK))[None, :])


@triton.jit
def load_part_transposed(ptr: tl.tensor, row: tl.tensor, part: tl.constexpr, CK: tl.constexpr) -> tl.tensor:
    """The same as [CK, rows]."""
    return tl.load(ptr + row.to(tl.int64)[None, :] * (4 * CK) + (part * CK + tl.arange(0, CK))[:, None])


@triton.jit
def load_query_parts(
    ptr: tl.tensor, row: tl.tensor, CK: tl.constexpr, E_EXACT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Rows of the operand [rows, 4, CK] of queries -> e hi, -2 e q hi, -2 e q lo, e lo (anything with E_EXACT)."""
    e_hi = load_part(ptr, row, 0, CK)
    q_hi = load_part(ptr, row, 1, CK)
    q_lo = load_part(ptr, row, 2, CK)
    e_lo = e_hi
    if not E_EXACT:
        e_lo = load_part(ptr, row, 3, CK)
    return e_hi, q_hi, q_lo, e_lo


@triton.jit
def split_product(
    ptr: tl.tensor, row: tl.tensor, query_parts: tl.tuple, CK: tl.constexpr, E_EXACT: tl.constexpr
) -> tl.tensor:
    """sum_c e k^2 - 2 e q k of split operands, the small products first: -> [queries, rows] float32.

    ptr: the operand [rows, 4, CK] of keys: k^2 hi, k hi, k^2 lo, k lo. With E_EXACT, e lo is 0 and not multiplied.
    """
    e_hi, q_hi, q_lo, e_lo = query_parts
    k2_hi = load_part_transposed(ptr, row, 0, CK)
    k_hi = load_part_transposed(ptr, row, 1, CK)
    small = tl.dot(e_hi, load_part_transposed(ptr, row, 2, CK))
    small = tl.dot(q_hi, load_part_transposed(ptr, row, 3, CK), small)
    small = tl.dot(q_lo, k_hi, small)
    if not E_EXACT:
        small = tl.dot(e_lo, k2_hi, small)
    product = tl.dot(e_hi, k2_hi, small * (1 / LOW))
    return tl.dot(q_hi, k_hi, product)


@triton.jit
def direct_scores(
    memory: MemoryArgs, queries: QueryArgs, b: tl.tensor, query: tl.tensor, token: tl.tensor,
    Q: tl.tensor, root: tl.tensor, CK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores [queries, tokens] by the direct form of Eq. 2, in float32; -inf where one is not readable.

    The direct form adds up e (k - q)^2 channel by channel, which cancels nothing. ``root`` is 1 / sqrt(CK).
    """
    distance = tl.zeros((query.shape[0], token.shape[0]), tl.float32)
    in_range = query < Q
    q_at = queries.qk + b * queries.qk_sb + query.to(tl.int64) * queries.qk_sq
    if queries.qe is not None:
        e_at = queries.qe + b * queries.qe_sb + query.to(tl.int64) * queries.qe_sq
    for c in range(CK):
        k = load_key_channel(memory, b, token, c)
        at = b * 0 + c  # of 64 bits: strides may be large
        q = tl.load(q_at + at * queries.qk_sc, mask=in_range, other=0.0).to(tl.float32)
        difference = k[None, :] - q[:, None]
        if queries.qe is not None:
            e = tl.load(e_at + at * queries.qe_sc, mask=in_range, other=0.0).to(tl.float32)
            distance += e[:, None] * difference * difference
        else:
            distance += difference * difference
    return readable(distance * token_scale(memory, b, token, root)[None, :])


@triton.jit
def needs_fallback(operands: SplitOperands, b: tl.tensor, query: tl.tensor, BLOCK_Q: tl.constexpr) -> tl.tensor:
    """Whether the memory, or any query of the block of BLOCK_Q that ``query`` is in, is not certified."""
    fallback = tl.load(operands.fallback_memory + b)
    first = query // BLOCK_Q * (BLOCK_Q // _TILE)
    for i in tl.static_range(BLOCK_Q // _TILE):
        fallback = fallback | tl.load(operands.fallback_queries + b * (operands.QP // _TILE) + first + i)
    return fallback != 0
