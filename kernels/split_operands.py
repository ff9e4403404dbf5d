"""Operands of the similarity (Eq. 2): keys and queries centred, scaled and split for matrix units.

    S[n, q] = -(s[n] / sqrt(CK)) D[n, q],    D = sum_c e k^2 + sum_c (-2 e q) k + sum_c e q^2

Keys and queries are centred on a median key, which makes the terms that cancel small. Matrix units
multiply 16-bit numbers at full speed, so each float32 factor x is held as two float16,
x = hi + lo / 2048, and a product as hi hi + (hi lo + lo hi) / 2048. Its error is 2^-22 of the
product where float32 has 2^-24. Errors of single products have random signs, and the rounding of
their sums in float32 is larger (``testing.score_tolerance`` allows the worst case, too).

Range. float16 ends at 65,504 and at 2^-24. Powers of two scale keys (their typical deviation from
the centre to 2 .. 4) and each query's e and 2 e q (the largest of them to 2048 .. 4096). A query is
**certified** where these ranges are enough.

Claim. What falls below the range changes D of a certified query by at most 2^-22 sum_c e q^2, which
is a part of what rounding is measured against.

Proof.

1. float16 holds x but for at most 2^-36: lo is a multiple of 2^-24, within 2^-25 of what it stands
   for, and stands for 2^11 times the rest of x.
2. The factors of D's terms are e, k^2, 2 e q and k. So D changes by at most
   2^-36 sum_c (|e| + k^2 + |2 e q| + |k|).
3. A memory is certified only where |k| < LARGEST_KEY in every channel, so k^2 + |k| < KEY_TERMS.
4. So D changes by at most LOST (sum_c (|e| + |2 e q|) + CKP KEY_TERMS), with LOST >= 2^-36. A query
   is certified only where this is at most CERTIFIED sum_c e q^2, with CERTIFIED <= 2^-22.

What is not certified (e < 0, a query at the median key, a memory with keys hundreds of times
farther out than most) takes the fallback: kernels that score by the direct form of Eq. 2 in
float32. The results agree; the fallback is slower. Both kinds are launched, and a program whose
tile of queries is for the other kind leaves at once, so nothing waits for the device.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .structs import TILE, MemoryArgs, QueryArgs, Segments, SplitOperands, align_up, padded_channels
from .tiles import end_of, is_finite, load_queries, load_tokens, power_of_two, split, token_scale

SAMPLES = 31  # tokens of which the median key is taken; odd, so that there is one in the middle
_ROOM = 32  # for them: a power of two

_TILE = tl.constexpr(TILE)
_SAMPLES = tl.constexpr(SAMPLES)
_SAMPLE_ROOM = tl.constexpr(_ROOM)

# Limits of what is certified.
# |k|, scaled and centred: k^2 stays below the largest float16, 65,504 = 255.9^2.
LARGEST_KEY = tl.constexpr(240.0)
KEY_TERMS = tl.constexpr(240.0**2 + 240.0)
# s / sqrt(CK): a score stays within float32 for every D below 3.4e20.
LARGEST_SCALE = tl.constexpr(1e18)
# sum_c e q^2, scaled: D stays below 1.1e20. It is at most (sqrt(sum_c e k^2) + sqrt(this))^2, and
# sum_c e k^2 at most 128 * 4096 * 240^2.
LARGEST_OFFSET = tl.constexpr(1e20)
# |e| and |2 e q|: tiles.power_of_two ends at 2^30 = 1.07e9, and would not scale what is larger.
LARGEST_FACTOR = tl.constexpr(1e9)
# The proof's two factors of D.
LOST = tl.constexpr(1.46e-11)  # 2^-36, rounded up
CERTIFIED = tl.constexpr(2.38e-7)  # 2^-22, rounded down

# What the two scales aim at, up to a factor of two.
KEY_SCALE = tl.constexpr(2.0)  # the median of the keys' largest deviations
QUERY_SCALE = tl.constexpr(2048.0)  # the largest |e| or |2 e q| of a query


def e_is_exact(queries: QueryArgs) -> bool:
    """Whether e has no low part: it is 1, or has 16 bits. A query whose e it lacks is not
    certified.
    """
    return queries.qe is None or queries.qk.dtype != torch.float32


def prepare(memory: Segments, queries: QueryArgs, pad: int) -> SplitOperands:
    """Two launches. The keys' operand is padded to a multiple of ``pad`` tokens, so no kernel needs
    a mask there.
    """
    qk = queries.qk
    b, ck, q = qk.shape
    ckp = padded_channels(ck)
    np, qp = align_up(memory.extent, pad), align_up(q, 2 * TILE)
    float32, new = torch.float32, qk.new_empty
    operands = SplitOperands(
        keys=new((b, np, 4, ckp), dtype=torch.float16),
        scale=new((b, np), dtype=float32),
        queries=new((b, qp, 4, ckp), dtype=torch.float16),
        offset=new((b, qp), dtype=float32),
        unscale=new((b, qp), dtype=float32),
        fallback_memory=new((b,), dtype=torch.int32),
        fallback_queries=new((b, qp // TILE), dtype=torch.int32),
        center=new((b, ckp), dtype=float32),
        NP=np,
        QP=qp,
    )
    key_scale, samples = new((b,), dtype=float32), new((b, _ROOM, ckp), dtype=float32)
    starts, ends = memory.compact  # samples are taken of tokens without gaps between segments
    keys = memory.args._replace(starts=starts, ends=ends, ms=(), ms_sb=(), ms_sn=())
    find_center[(b,)](keys, operands.center, key_scale, operands.fallback_memory, samples, CK=ck, CKP=ckp, num_warps=8)
    key_tiles = np // TILE
    fill_operands[(key_tiles + qp // TILE, b)](
        memory.args, queries, key_scale, operands, q, key_tiles, 1 / math.sqrt(ck),
        CK=ck, CKP=ckp, E_EXACT=e_is_exact(queries), PAD=pad, num_warps=8,
    )  # fmt: skip
    return operands


@triton.jit
def find_center(
    memory: MemoryArgs, center: tl.tensor, key_scale: tl.tensor, fallback_memory: tl.tensor, samples: tl.tensor,
    CK: tl.constexpr, CKP: tl.constexpr,
) -> None:  # fmt: skip
    """center [B, CKP]: per channel the median of some tokens; key_scale [B]: the power of two that
    scales keys.

    Neither keys that are not finite nor a few enormous ones move a median away from the rest.
    ``memory`` is numbered without gaps; samples [B, 32, CKP] is room. fallback_memory [B] becomes
    0. Grid [B].
    """
    b = tl.program_id(0)
    sample = tl.arange(0, _SAMPLE_ROOM)
    channel = tl.arange(0, CKP)
    tokens = end_of(memory)
    token = tl.minimum(sample.to(tl.int64) * tokens // _SAMPLES, tokens - 1)
    x = load_tokens(memory, b, token, channel, CK).to(tl.float32)
    x = tl.where(x == x, x, 0.0)
    # A median is the sample of middle rank. Each program reads all samples in all threads: a sum
    # over threads would take several times as long, and one program has nothing else to do
    # meanwhile.
    samples += b * _SAMPLE_ROOM * CKP
    tl.store(samples + sample[:, None] * CKP + channel[None, :], x)
    tl.debug_barrier()
    rank = tl.zeros(x.shape, tl.int32)
    for j in range(_SAMPLES):
        other = tl.load(samples + j * CKP + channel)[None, :]
        rank += ((other < x) | ((other == x) & (j < sample)[:, None])).to(tl.int32)
    m = tl.sum(tl.where((rank == _SAMPLES // 2) & (sample < _SAMPLES)[:, None], x, 0.0), 0)
    m = tl.where(is_finite(m), m, 0.0)
    tl.store(center + b * CKP + channel, m)
    deviation = tl.max(tl.abs(x - m[None, :]), 1)
    mine, other = deviation[:, None], deviation[None, :]
    before = (other < mine) | ((other == mine) & (sample[None, :] < sample[:, None]))
    rank = tl.sum((before & (sample < _SAMPLES)[None, :]).to(tl.int32), 1)
    typical = tl.sum(tl.where((rank == _SAMPLES // 2) & (sample < _SAMPLES), deviation, 0.0), 0)
    tl.store(key_scale + b, tl.where(typical > 0, KEY_SCALE / power_of_two(typical), 1.0))
    tl.store(fallback_memory + b, 0)


@triton.jit(do_not_specialize=["Q", "key_tiles"])
def fill_operands(
    memory: MemoryArgs, queries: QueryArgs, key_scale: tl.tensor, operands: SplitOperands,
    Q: tl.tensor, key_tiles: tl.tensor, root: tl.tensor,
    CK: tl.constexpr, CKP: tl.constexpr, E_EXACT: tl.constexpr, PAD: tl.constexpr,
) -> None:  # fmt: skip
    """Fills ``operands``; ``root`` is 1 / sqrt(CK). Grid [tiles of keys, then of queries; B]."""
    b = tl.program_id(1)
    tile = tl.program_id(0)
    # No kernel reads room behind the last token, but for what fills the last PAD.
    if (tile < key_tiles) & (tile.to(tl.int64) * _TILE // PAD * PAD >= end_of(memory)):
        return
    channel = tl.arange(0, CKP)
    center = tl.load(operands.center + b * CKP + channel)[None, :]
    a = tl.load(key_scale + b)
    if tile < key_tiles:
        token = tile.to(tl.int64) * _TILE + tl.arange(0, _TILE)
        x = load_tokens(memory, b, token, channel, CK).to(tl.float32)
        s = token_scale(memory, b, token, root)
        read = (tl.max(tl.where(is_finite(x), 0.0, 1.0), 1) == 0) & is_finite(s)
        k = tl.where(read[:, None], (x - center) * a, 0.0)
        far = read & ((tl.max(tl.abs(k), 1) >= LARGEST_KEY) | (tl.abs(s) > LARGEST_SCALE))
        tl.atomic_max(operands.fallback_memory + b, tl.max(far.to(tl.int32), 0))
        row = b.to(tl.int64) * operands.NP + token
        tl.store(operands.scale + row, tl.where(read, s, -float("inf")))
        at = operands.keys + row[:, None] * (4 * CKP) + channel[None, :]
        hi, lo = split(k * k)
        tl.store(at, hi)
        tl.store(at + 2 * CKP, lo)
        hi, lo = split(k)
        tl.store(at + CKP, hi)
        tl.store(at + 3 * CKP, lo)
    else:
        query = (tile - key_tiles) * _TILE + tl.arange(0, _TILE)
        q, e = load_queries(queries, b, query, Q, CK, CKP)
        q = tl.where((query < Q)[:, None], (q - center) * a, 0.0)
        q = tl.where((channel < CK)[None, :], q, 0.0)
        largest = tl.max(tl.maximum(tl.abs(e), 2 * tl.abs(e * q)), 1)
        w = QUERY_SCALE / power_of_two(largest)
        e = e * w[:, None]
        eq = -2 * e * q
        row = b.to(tl.int64) * operands.QP + query
        at = operands.queries + row[:, None] * (4 * CKP) + channel[None, :]
        e_hi, e_lo = split(e)
        tl.store(at, e_hi)
        tl.store(at + 3 * CKP, e_lo)
        hi, lo = split(eq)
        tl.store(at + CKP, hi)
        tl.store(at + 2 * CKP, lo)
        sum_eq2 = -0.5 * tl.sum(eq * q, 1)
        tl.store(operands.offset + row, tl.where(query < Q, sum_eq2, 1.0))
        tl.store(operands.unscale + row, 1 / (a * a * w))
        lost = LOST * (tl.sum(tl.abs(e) + tl.abs(eq), 1) + KEY_TERMS * CKP)
        certified = (lost <= CERTIFIED * sum_eq2) & (sum_eq2 < LARGEST_OFFSET)
        certified = certified & (tl.min(e, 1) >= 0) & (largest < LARGEST_FACTOR)
        if E_EXACT:
            certified = certified & (tl.max(tl.abs(e - e_hi.to(tl.float32)), 1) == 0)
        fallback = tl.max(((query < Q) & (certified == 0)).to(tl.int32), 0)
        tl.store(operands.fallback_queries + b * (operands.QP // _TILE) + tile - key_tiles, fallback)
