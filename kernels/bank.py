"""Operands of the similarity (Eq. 2): keys and queries translated, scaled and split for matrix units.

    S[n, q] = -(s[n] / sqrt(CK)) D[n, q],    D = sum_c e k^2 + sum_c (-2 e q) k + sum_c e q^2

with k and q translated by a middle key, so that the terms that cancel are small. Matrix units multiply 16-bit numbers
at full speed, so each float32 factor x is held as two float16, x = hi + lo / 2048, and a product as hi hi + (hi lo + lo
hi) / 2048: an error of 2^-22 of the product where float32 has 2^-24, of single products and of random sign, in sums
whose rounding in float32 is larger (``testing.score_tolerance`` allows the worst case, too).

float16 ends at 65,504 and at 2^-24, so keys are scaled by a power of two (the spread of some of them to 2 .. 4), and
each query's e and e q by another. That this was enough is proved for the numbers at hand, on the device: what falls
under the range adds at most 2^-36 (sum |e| + 2 |e q| + k^2 + |k|) to D, and a query is **certified** where this is less
than 2^-22 of its sum_c e q^2, itself a part of what rounding is measured against. Queries that are not (e < 0, a query
at the middle of all keys, a memory with keys hundreds of times farther out than most) take kernels that score by
differences in float32: the same result, slower. Both are launched, and a tile of queries leaves one of them at once, so
nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .tiles import bound, is_finite, load_queries, load_tokens, power_of_two, split, token_scale

SEGMENTS = 4  # more are joined by the host
MOST_BATCHES = 65535  # a dimension of CUDA's grids
TILE = 64  # queries that share a certificate, and rows of a program here
_SAMPLES = tl.constexpr(31)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Keys and shrinkage as the kernels take them; the numbers of the segments may be on the device (sized.py)."""

    mk: tuple[Tensor, ...]
    ms: tuple[Tensor, ...]
    starts: tuple[int, ...] | tuple[Tensor, ...]
    ends: tuple[int, ...] | tuple[Tensor, ...]
    tokens: int  # that exist, or that there is room for
    extent: int  # numbers that they take, with those left out between aligned segments

    @property
    def segments(self) -> int:
        return len(self.mk)

    @functools.cached_property
    def keys(self) -> tuple[Any, ...]:
        """Pointers, starts, ends and strides of the keys."""
        return self.mk, self.starts, self.ends, *strides(self.mk)

    @property
    def compact(self) -> tuple[Any, ...]:
        """Starts and ends without gaps between segments."""
        if isinstance(self.starts[0], Tensor):
            return self.starts, self.ends
        return numbers(self.mk)

    @functools.cached_property
    def shrinkage(self) -> tuple[Any, ...]:
        """Pointers and strides (batch, token) of the shrinkage; the keys' where there is none, to be ignored."""
        ms = self.ms or self.mk
        batch, _, token = strides(ms)
        return ms, batch, token


@dataclasses.dataclass(frozen=True)
class Queries:
    qk: Tensor
    qe: Tensor | None

    @functools.cached_property
    def arguments(self) -> tuple[Any, ...]:
        qe = self.qk if self.qe is None else self.qe
        return self.qk, qe, *self.qk.stride(), *qe.stride()


class Bank(NamedTuple):
    """Split operands of a memory and of queries.

    keys [B, NP, 4, CKP] float16: k^2 hi, k hi, k^2 lo, k lo; scale [B, NP]: -s / sqrt(CK), and -inf for a token that
    cannot be read and beyond N; queries [B, QP, 4, CKP] float16: e hi, -2 e q hi, -2 e q lo, e lo; offset [B, QP]:
    sum_c e q^2; unscale [B, QP]: what brings D back to the keys' own scale; middle [B, CKP]; wide_memory [B] and
    wide_queries [B, QP / TILE] int32: what is not certified.
    """

    keys: Tensor
    scale: Tensor
    queries: Tensor
    offset: Tensor
    unscale: Tensor
    middle: Tensor
    wide_memory: Tensor
    wide_queries: Tensor
    e_exact: bool

    @property
    def split(self) -> tuple[Tensor, ...]:
        return self.keys, self.scale, self.queries, self.offset, self.unscale, self.wide_memory, self.wide_queries


def check_batch(name: str, like: Tensor) -> None:
    """ValueError where [B, ...] has more batch elements than a grid."""
    if like.shape[0] > MOST_BATCHES:
        raise ValueError(f"{name}: wanted B <= {MOST_BATCHES} for the Triton kernels, got B = {like.shape[0]}")


def memory(mk: list[Tensor], ms: list[Tensor] | None, align: int = 1) -> Memory:
    """The segments that are not empty, at most SEGMENTS of them, each numbered from a multiple of ``align``."""
    check_batch("mk", mk[0])
    used = [i for i, k in enumerate(mk) if k.shape[2] > 0]
    keys = joined([mk[i] for i in used])
    shrinkage = () if ms is None else joined([ms[i] for i in used])
    extent = 0
    for k in keys:
        extent = -(-extent // align) * align + k.shape[2]
    return Memory(keys, shrinkage, *numbers(keys, align), sum(k.shape[2] for k in keys), extent)


def numbers(segments: tuple[Tensor, ...], align: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where segments [B, ..., N] start and end when each starts at a multiple of ``align``, for ``tiles.bound``.

    Triton compiles a kernel anew for numbers that are 1 or that 16 divides; written as 16 n + 2 none is, and a memory
    that grows keeps its kernels.
    """
    starts: list[int] = []
    ends: list[int] = []
    last = 0
    for segment in segments:
        first = -(-last // align) * align
        last = first + segment.shape[-1]
        starts.append(16 * first + 2)
        ends.append(16 * last + 2)
    return tuple(starts), tuple(ends)


def joined(segments: list[Tensor]) -> tuple[Tensor, ...]:
    """Segments [B, ..., N] as at most SEGMENTS of them, the rest concatenated."""
    if len(segments) <= SEGMENTS:
        return tuple(segments)
    return (*segments[: SEGMENTS - 1], torch.cat(segments[SEGMENTS - 1 :], segments[0].dim() - 1))


def strides(tensors: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
    """Strides of [B, ..., N] tensors, one tuple for each dimension; of a batch of one, which changes with N, 0."""
    one = tensors[0].shape[0] <= 1
    batch, *others = zip(*[t.stride() for t in tensors])
    return (0,) * len(tensors) if one else batch, *others


def padded_channels(channels: int) -> int:
    return max(16, configs.power_of_2_from(channels))


def prepare(memory: Memory, queries: Queries, pad: int) -> Bank:
    """Two launches. The keys' operand is padded to a multiple of ``pad`` tokens, so no kernel needs a mask there."""
    qk = queries.qk
    b, ck, q = qk.shape
    ckp = padded_channels(ck)
    np, qp = -(-memory.extent // pad) * pad, -(-q // (2 * TILE)) * 2 * TILE
    new = qk.new_empty
    bank = Bank(
        keys=new((b, np, 4, ckp), dtype=torch.float16),
        scale=new((b, np), dtype=torch.float32),
        queries=new((b, qp, 4, ckp), dtype=torch.float16),
        offset=new((b, qp), dtype=torch.float32),
        unscale=new((b, qp), dtype=torch.float32),
        middle=new((b, ckp), dtype=torch.float32),
        wide_memory=new((b,), dtype=torch.int32),
        wide_queries=new((b, qp // TILE), dtype=torch.int32),
        e_exact=queries.qe is None or qk.dtype != torch.float32,
    )
    size = new((b,), dtype=torch.float32)
    # Samples are taken of tokens without gaps between segments.
    mk, _, _, *key_strides = memory.keys
    find_middle[(b,)](
        mk,
        *memory.compact,
        *key_strides,
        bank.middle,
        size,
        bank.wide_memory,
        new((b, 32, ckp), dtype=torch.float32),
        ck,
        ckp,
        memory.segments,
        num_warps=8,
    )
    key_tiles = np // TILE
    fill_bank[(key_tiles + qp // TILE, b)](
        *memory.keys,
        *memory.shrinkage,
        *queries.arguments,
        bank.middle,
        size,
        *bank.split,
        q,
        np,
        qp,
        key_tiles,
        1 / math.sqrt(ck),
        ck,
        ckp,
        memory.segments,
        len(memory.ms) > 0,
        queries.qe is not None,
        bank.e_exact,
        TILE,
        pad,
        num_warps=8,
    )
    return bank


@triton.jit
def find_middle(
    mk,
    starts,
    ends,
    sb,
    sc,
    sn,
    middle,
    size,
    wide_memory,
    samples,
    CK: tl.constexpr,
    CKP: tl.constexpr,
    SEGMENTS: tl.constexpr,
):
    """middle [B, CKP]: per channel the median of some tokens, which neither keys that are not finite nor a few enormous
    ones move away from the rest; size [B]: a power of two, what makes the median of their largest deviations 2 .. 4.

    Grid [B].
    """
    b = tl.program_id(0)
    sample = tl.arange(0, 32)
    channel = tl.arange(0, CKP)
    tokens = bound(ends, SEGMENTS - 1)
    token = tl.minimum(sample.to(tl.int64) * tokens // _SAMPLES, tokens - 1)
    x = load_tokens(mk, starts, ends, sb, sc, sn, b, token, channel, CK, SEGMENTS).to(tl.float32)
    x = tl.where(x == x, x, 0.0)
    # Medians are what has the middle rank. Each sample is read by all threads: a sum over threads to tell them would
    # take several times as long, and one program has nothing else to do meanwhile.
    samples += b * 32 * CKP
    tl.store(samples + sample[:, None] * CKP + channel[None, :], x)
    tl.debug_barrier()
    rank = tl.zeros(x.shape, tl.int32)
    for j in range(_SAMPLES):
        other = tl.load(samples + j * CKP + channel)[None, :]
        rank += ((other < x) | ((other == x) & (j < sample)[:, None])).to(tl.int32)
    m = tl.sum(tl.where((rank == _SAMPLES // 2) & (sample < _SAMPLES)[:, None], x, 0.0), 0)
    m = tl.where(is_finite(m), m, 0.0)
    tl.store(middle + b * CKP + channel, m)
    deviation = tl.max(tl.abs(x - m[None, :]), 1)
    mine, other = deviation[:, None], deviation[None, :]
    before = (other < mine) | ((other == mine) & (sample[None, :] < sample[:, None]))
    rank = tl.sum((before & (sample < _SAMPLES)[None, :]).to(tl.int32), 1)
    typical = tl.sum(tl.where((rank == _SAMPLES // 2) & (sample < _SAMPLES), deviation, 0.0), 0)
    tl.store(size + b, tl.where(typical > 0, 2.0 / power_of_two(typical), 1.0))
    tl.store(wide_memory + b, 0)


@triton.jit(do_not_specialize=["Q", "key_tiles"])
def fill_bank(
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
    middle,
    size,
    keys,
    scale,
    queries,
    offset,
    unscale,
    wide_memory,
    wide_queries,
    Q,
    NP,
    QP,
    key_tiles,
    root,
    CK: tl.constexpr,
    CKP: tl.constexpr,
    SEGMENTS: tl.constexpr,
    HAS_S: tl.constexpr,
    HAS_E: tl.constexpr,
    E_EXACT: tl.constexpr,
    TILE: tl.constexpr,
    PAD: tl.constexpr,
):
    """The operands of :class:`Bank`. Grid [tiles of keys, then tiles of queries; B]; ``root`` is 1 / sqrt(CK)."""
    b = tl.program_id(1)
    tile = tl.program_id(0)
    # Room that no token has taken is nobody's to read, but for what fills the last PAD.
    if (tile < key_tiles) & (tile.to(tl.int64) * TILE // PAD * PAD >= bound(ends, SEGMENTS - 1)):
        return
    channel = tl.arange(0, CKP)
    center = tl.load(middle + b * CKP + channel)[None, :]
    a = tl.load(size + b)
    if tile < key_tiles:
        token = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
        x = load_tokens(mk, starts, ends, sb, sc, sn, b, token, channel, CK, SEGMENTS).to(tl.float32)
        s = token_scale(ms, starts, ends, ms_sb, ms_sn, b, token, root, HAS_S, SEGMENTS)
        read = (tl.max(tl.where(is_finite(x), 0.0, 1.0), 1) == 0) & is_finite(s)
        k = tl.where(read[:, None], (x - center) * a, 0.0)
        # Beyond this, k^2 leaves float16, or a score float32.
        far = read & ((tl.max(tl.abs(k), 1) >= 240) | (tl.abs(s) > 1e18))
        tl.atomic_max(wide_memory + b, tl.max(far.to(tl.int32), 0))
        row = b.to(tl.int64) * NP + token
        tl.store(scale + row, tl.where(read, s, -float("inf")))
        at = keys + row[:, None] * (4 * CKP) + channel[None, :]
        hi, lo = split(k * k)
        tl.store(at, hi)
        tl.store(at + 2 * CKP, lo)
        hi, lo = split(k)
        tl.store(at + CKP, hi)
        tl.store(at + 3 * CKP, lo)
    else:
        query = (tile - key_tiles) * TILE + tl.arange(0, TILE)
        q, e = load_queries(qk, qe, q_sb, q_sc, q_sq, e_sb, e_sc, e_sq, b, query, Q, CK, CKP, HAS_E)
        q = tl.where((query < Q)[:, None], (q - center) * a, 0.0)
        q = tl.where((channel < CK)[None, :], q, 0.0)
        largest = tl.max(tl.maximum(tl.abs(e), 2 * tl.abs(e * q)), 1)
        w = 2048.0 / power_of_two(largest)
        e = e * w[:, None]
        eq = -2 * e * q
        row = b.to(tl.int64) * QP + query
        at = queries + row[:, None] * (4 * CKP) + channel[None, :]
        e_hi, e_lo = split(e)
        tl.store(at, e_hi)
        tl.store(at + 3 * CKP, e_lo)
        hi, lo = split(eq)
        tl.store(at + CKP, hi)
        tl.store(at + 2 * CKP, lo)
        sum_eq2 = -0.5 * tl.sum(eq * q, 1)
        tl.store(offset + row, tl.where(query < Q, sum_eq2, 1.0))
        tl.store(unscale + row, 1 / (a * a * w))
        lost = 1.46e-11 * (tl.sum(tl.abs(e) + tl.abs(eq), 1) + 57840.0 * CKP)
        sure = (lost <= 2.38e-7 * sum_eq2) & (sum_eq2 < 1e30) & (tl.min(e, 1) >= 0) & (largest < 1e9)
        if E_EXACT:
            sure = sure & (tl.max(tl.abs(e - e_hi.to(tl.float32)), 1) == 0)
        wide = tl.max(((query < Q) & (sure == 0)).to(tl.int32), 0)
        tl.store(wide_queries + b * (QP // TILE) + tile - key_tiles, wide)
