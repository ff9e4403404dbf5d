"""What the kernels share: reading tokens of several segments, splitting float32 into float16 pairs, tiles of scores.

Tokens are numbered through all segments. ``starts`` and ``ends`` are the segments' first numbers and those behind their
last, ``sb``, ``sc`` and ``sn`` their strides of batch, channel and token; all are tuples as long as the memory has
segments (at most ``bank.SEGMENTS``), so the loops over them unroll.

The numbers come with the launch, written as ``bank.numbers`` does, or, where one graph is to serve a memory that
grows, from the device (sized.py): then ``starts[i]`` points to the first number and that of the token which a segment's
pointer points to, and ``ends[i]`` to the number behind the last.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def number(x):
    """A number as ``bank.numbers`` has written it, or from the device."""
    if x.dtype.is_ptr():
        return tl.load(x)
    else:  # noqa: RET505  (what follows a return is compiled, too)
        return x >> 4


@triton.jit
def bound(numbers, i: tl.constexpr):
    """One of ``starts`` or ``ends``."""
    return number(numbers[i])


@triton.jit
def origin(starts, i: tl.constexpr):
    """The number of the token that the i-th segment's pointer points to."""
    if starts[i].dtype.is_ptr():
        return tl.load(starts[i] + 1)
    else:  # noqa: RET505
        return starts[i] >> 4


@triton.jit
def load_tokens(ptrs, starts, ends, sb, sc, sn, b, token, channel, CHANNELS, SEGMENTS: tl.constexpr):
    """Channels of tokens of [B, CHANNELS, N] as rows: token [T] int64, channel [C] -> [T, C], 0 where there is none."""
    rows = tl.zeros((token.shape[0], channel.shape[0]), ptrs[0].dtype.element_ty)
    for i in tl.static_range(SEGMENTS):
        here = (token >= bound(starts, i)) & (token < bound(ends, i))
        offset = (token - origin(starts, i))[:, None] * sn[i] + channel[None, :].to(tl.int64) * sc[i]
        mask = here[:, None] & (channel < CHANNELS)[None, :]
        rows = tl.where(here[:, None], tl.load(ptrs[i] + b.to(tl.int64) * sb[i] + offset, mask=mask, other=0.0), rows)
    return rows


@triton.jit
def load_scalars(ptrs, starts, ends, sb, sn, b, token, channel, sc, SEGMENTS: tl.constexpr):
    """One channel of tokens of [B, C, N]: token [T] int64 -> [T] float32, 0 where there is none."""
    numbers = tl.zeros((token.shape[0],), tl.float32)
    b = b.to(tl.int64)  # and with it what it is added to
    for i in tl.static_range(SEGMENTS):
        here = (token >= bound(starts, i)) & (token < bound(ends, i))
        at = ptrs[i] + b * sb[i] + (b * 0 + channel) * sc[i] + (token - origin(starts, i)) * sn[i]
        numbers = tl.where(here, tl.load(at, mask=here, other=0.0).to(tl.float32), numbers)
    return numbers


@triton.jit
def exists(starts, ends, token, SEGMENTS: tl.constexpr):
    """Whether a token belongs to a segment."""
    found = token < 0
    for i in tl.static_range(SEGMENTS):
        found = found | ((token >= bound(starts, i)) & (token < bound(ends, i)))
    return found


@triton.jit
def operand(x, UPCAST: tl.constexpr):
    """x as a factor of tl.dot: the interpreter multiplies the bits of bfloat16 as if they were integers."""
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def readable(score):
    """The rule of a score that is NaN or +inf: it counts as -inf."""
    return tl.where(score < float("inf"), score, -float("inf"))


@triton.jit
def power_of_two(x):
    """The power of two at or below x > 0, held within 2^-30 and 2^30 (which infinity, 0 and NaN become, too)."""
    held = tl.where(x > 9.313225746154785e-10, tl.minimum(x, 1073741824.0), 9.313225746154785e-10)
    return (held.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def split(x):
    """x float32 -> hi, lo float16 with x = hi + lo / 2048, to 22 bits or 2^-36, whichever is the larger error."""
    hi = x.to(tl.float16)
    return hi, ((x - hi.to(tl.float32)) * 2048.0).to(tl.float16)


@triton.jit
def load_part(ptr, row, part, CK: tl.constexpr):
    """Part ``part`` of the rows of an operand [rows, 4, CK] -> [rows, CK]."""
    return tl.load(ptr + row.to(tl.int64)[:, None] * (4 * CK) + (part * CK + tl.arange(0, CK))[None, :])


@triton.jit
def load_part_turned(ptr, row, part, CK: tl.constexpr):
    """The same as [CK, rows]."""
    return tl.load(ptr + row.to(tl.int64)[None, :] * (4 * CK) + (part * CK + tl.arange(0, CK))[:, None])


@triton.jit
def split_product(ptr, row, e_hi, q_hi, q_lo, e_lo, CK: tl.constexpr, E_EXACT: tl.constexpr):
    """sum_c e k^2 - 2 e q k of split operands, the small products first: -> [queries, rows] float32.

    ptr: the operand [rows, 4, CK] of keys: k^2 hi, k hi, k^2 lo, k lo. With E_EXACT, e_lo is 0 and not looked at.
    """
    k2_hi = load_part_turned(ptr, row, 0, CK)
    k_hi = load_part_turned(ptr, row, 1, CK)
    small = tl.dot(e_hi, load_part_turned(ptr, row, 2, CK))
    small = tl.dot(q_hi, load_part_turned(ptr, row, 3, CK), small)
    small = tl.dot(q_lo, k_hi, small)
    if not E_EXACT:
        small = tl.dot(e_lo, k2_hi, small)
    product = tl.dot(e_hi, k2_hi, small * (1 / 2048))
    return tl.dot(q_hi, k_hi, product)


@triton.jit
def query_operand(ptr, row, CK: tl.constexpr, E_EXACT: tl.constexpr):
    """Rows of the operand [rows, 4, CK] of queries -> e hi, -2 e q hi, -2 e q lo, e lo."""
    e_hi = load_part(ptr, row, 0, CK)
    q_hi = load_part(ptr, row, 1, CK)
    q_lo = load_part(ptr, row, 2, CK)
    e_lo = e_hi
    if not E_EXACT:
        e_lo = load_part(ptr, row, 3, CK)
    return e_hi, q_hi, q_lo, e_lo


@triton.jit
def load_queries(qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq, b, query, Q, CK, CKP: tl.constexpr, HAS_E: tl.constexpr):
    """Rows of qk and qe [B, CK, Q] as float32 -> q, e [queries, CKP], 0 beyond Q and CK; e is 1 where there is none."""
    channel = tl.arange(0, CKP)
    mask = (query < Q)[:, None] & (channel < CK)[None, :]
    b = b.to(tl.int64)
    row = query.to(tl.int64)[:, None]
    channel = channel[None, :].to(tl.int64)
    q = tl.load(qk + b * q_sb + row * q_sq + channel * q_sc, mask=mask, other=0.0).to(tl.float32)
    if HAS_E:
        e = tl.load(qe + b * e_sb + row * e_sq + channel * e_sc, mask=mask, other=0.0).to(tl.float32)
    else:
        e = tl.where(mask, 1.0, 0.0)
    return q, e


@triton.jit
def difference_scores(
    mk,
    starts,
    ends,
    sb,
    sc,
    sn,
    ms,
    ms_sb,
    ms_sn,
    qk,
    qe,
    q_sb,
    q_sc,
    q_sq,
    e_sb,
    e_sc,
    e_sq,
    b,
    query,
    token,
    Q,
    root,
    CK: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
):
    """Scores [queries, tokens] as Eq. 2 has them, channel by channel in float32; -inf where they cannot be read."""
    distance = tl.zeros((query.shape[0], token.shape[0]), tl.float32)
    in_range = query < Q
    q_at = qk + b * q_sb + query.to(tl.int64) * q_sq
    e_at = qe + b * e_sb + query.to(tl.int64) * e_sq
    for c in range(CK):
        k = load_scalars(mk, starts, ends, sb, sn, b, token, c, sc, SEGMENTS)
        at = b * 0 + c  # of 64 bits: strides may be large
        q = tl.load(q_at + at * q_sc, mask=in_range, other=0.0).to(tl.float32)
        difference = k[None, :] - q[:, None]
        if HAS_E:
            e = tl.load(e_at + at * e_sc, mask=in_range, other=0.0).to(tl.float32)
            distance += e[:, None] * difference * difference
        else:
            distance += difference * difference
    scale = token_scale(ms, starts, ends, ms_sb, ms_sn, b, token, root, HAS_S, SEGMENTS)
    return readable(distance * scale[None, :])


@triton.jit
def token_scale(ms, starts, ends, ms_sb, ms_sn, b, token, root, HAS_S: tl.constexpr, SEGMENTS: tl.constexpr):
    """-s / sqrt(CK) of tokens [T] int64, NaN where there is none; ``root`` is 1 / sqrt(CK)."""
    if HAS_S:
        s = load_scalars(ms, starts, ends, ms_sb, ms_sn, b, token, 0, ms_sb, SEGMENTS)
    else:
        s = tl.full((token.shape[0],), 1.0, tl.float32)
    return tl.where(exists(starts, ends, token, SEGMENTS), -s * root, float("nan"))


@triton.jit
def is_wide(wide_memory, wide_queries, b, query, CERTIFICATES, TILE: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Whether the memory, or any query of the block of BLOCK_Q that ``query`` is in, is not certified."""
    wide = tl.load(wide_memory + b)
    first = query // BLOCK_Q * (BLOCK_Q // TILE)
    for i in tl.static_range(BLOCK_Q // TILE):
        wide = wide | tl.load(wide_queries + b * CERTIFICATES + first + i)
    return wide != 0
