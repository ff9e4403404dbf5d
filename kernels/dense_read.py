"""The dense read: weights in blocks of queries (dense_weights.py), each multiplied with all values.

The blocks bound the extra memory (WEIGHT_BYTES), and that weights are written makes one product of them with the values
of all objects, at the cost of writing and reading them once. What is added up over queries or over parts of the memory
is added in a fixed order: no atomics.

Weights and values are multiplied in 16 bits to float32 accuracy: float16 values with weights in two parts, bfloat16
values with weights in three, float32 values and weights in three parts each, of which six products count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import bank, configs, interpreted
from .bank import Memory, Queries
from .dense_lse import ALIGN, PROGRAMS, affinity
from .dense_weights import FORMATS, HALF_SCALE, block_rows, weights
from .tiles import bound, operand

WEIGHT_BYTES = 32 << 20  # of weights at a time, but at least a block of queries
_SPLITS = 16  # of 8 tiles of a block of queries at 480p: a program for nearly every multiprocessor of an H100


def memory_read(
    mk: list[Tensor],
    ms: list[Tensor] | None,
    mv: list[Tensor],
    qk: Tensor,
    qe: Tensor | None,
    return_usage: bool,
) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q] in mv's dtype, with channel stride 1; usage [B, N] float32 or None."""
    readout, usage, _ = read(bank.memory(mk, ms, ALIGN), mv, Queries(qk, qe), return_usage, False)
    return readout, usage


def read(
    memory: Memory, mv: list[Tensor], queries: Queries, return_usage: bool, potentiate: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """-> readout, usage or None, and with ``potentiate`` the read shrinkage [B, 1, Q] float32."""
    b, o, cv, _ = mv[0].shape
    q = queries.qk.shape[2]
    out = mv[0].new_empty((b, q, o, cv))
    usage = queries.qk.new_zeros((b, memory.tokens), dtype=torch.float32) if return_usage else None
    shrinkage = queries.qk.new_empty((b, 1, q), dtype=torch.float32) if potentiate else None
    if q > 0 and b > 0:
        values = bank.joined([v for v in mv if v.shape[3] > 0])
        a = affinity(memory, queries)
        form = FORMATS[mv[0].dtype]
        np, qp = a.bank.keys.shape[1], a.bank.queries.shape[1]
        least = block_rows()
        most = max(least, WEIGHT_BYTES // (2 * form[0] * b * np) // least * least)
        rows = -(-qp // (-(-qp // most)) // least) * least
        for first in range(0, qp, rows):
            count = min(rows, qp - first)
            w = weights(a, first, count, form, return_usage, potentiate)
            if out.numel() > 0:
                _multiply(w.parts, values, memory, out, first, min(count, q - first))
            if usage is not None and w.columns is not None:
                _add_usage(w.columns, memory, usage)
            if shrinkage is not None and w.shrinkage is not None:
                shrinkage[:, 0, first : first + count] = w.shrinkage.sum(1)[:, : min(count, q - first)]
            del w  # before those of the next block are made
    return out.permute(0, 2, 3, 1), usage, shrinkage


def _multiply(parts: Tensor, values: tuple[Tensor, ...], memory: Memory, out: Tensor, first: int, count: int) -> None:
    """Rows [first, first + count) of out [B, Q, O, CV] from weights [B, parts, rows, NP]; one launch, or two."""
    b, q, o, cv = out.shape
    rows, np = parts.shape[2:]
    config = configs.of("multiply_values_float32" if out.dtype == torch.float32 else "multiply_values", out)
    block_q, block_c, block_n = config["BLOCK_Q"], config["BLOCK_C"], config["BLOCK_N"]
    channels = -(-cv // block_c)
    tiles = rows // block_q * channels * o * b
    splits = max(1, min(_SPLITS, PROGRAMS // tiles, np // ALIGN // 4))
    target = out if splits == 1 else parts.new_empty((splits, b, count, o, cv), dtype=torch.float32)
    multiply_values[(rows // block_q * channels, o * splits, b)](
        parts,
        values,
        memory.starts,
        memory.ends,
        *bank.strides(values),
        target,
        rows,
        np,
        q if splits == 1 else count,
        o,
        cv,
        first if splits == 1 else 0,
        count,
        channels,
        splits,
        b,
        len(values),
        parts.shape[1],
        out.dtype == torch.float32,
        interpreted(),
        block_q,
        block_c,
        block_n,
        ALIGN,
        **configs.launch(config),
    )
    if splits > 1:
        width = o * cv
        sum_splits[(count, -(-width // 1024), b)](target, out, splits, b, count, q, first, width, 1024)


def _add_usage(columns: Tensor, memory: Memory, usage: Tensor) -> None:
    b, tiles, np = columns.shape
    compact, _ = bank.numbers(memory.mk)
    add_columns[(np // ALIGN, b)](
        columns, usage, memory.starts, memory.ends, compact, tiles, np, memory.tokens, memory.segments, ALIGN
    )


@triton.jit(do_not_specialize=["Q", "first", "count", "splits"])
def multiply_values(
    parts,
    mv,
    starts,
    ends,
    sb,
    so,
    sc,
    sn,
    out,
    rows,
    NP,
    Q,
    O,  # noqa: E741
    CV,
    first,
    count,
    channels,
    splits,
    B,
    SEGMENTS: tl.constexpr,
    PARTS: tl.constexpr,
    SPLIT_VALUES: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """out [splits, B, Q, O, CV], rows [first, first + count): sum over a split of the tokens of weight * value.

    parts [B, PARTS, rows, NP] are weights as _store_weights writes them. Grid [blocks of queries * blocks of channels,
    O * splits, B].
    """
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) // channels * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.program_id(0) % channels * BLOCK_C + tl.arange(0, BLOCK_C)
    o = (tl.program_id(1) % O).to(tl.int64)
    split = tl.program_id(1) // O
    tiles = NP // ALIGN
    lowest = (split.to(tl.int64) * tiles // splits * ALIGN).to(tl.int32)
    highest = ((split + 1).to(tl.int64) * tiles // splits * ALIGN).to(tl.int32)
    weight = parts + (b * PARTS * rows + row.to(tl.int64)[:, None]) * NP
    part = rows.to(tl.int64) * NP
    total = tl.zeros((BLOCK_Q, BLOCK_C), tl.float32)
    for i in tl.static_range(SEGMENTS):
        value = mv[i] + b * sb[i] + o * so[i] + channel[None, :].to(tl.int64) * sc[i]
        # Both are multiples of ALIGN; said so that loads are wide.
        low = tl.maximum(lowest, bound(starts, i)) // BLOCK_N * BLOCK_N
        for start in range(low, tl.minimum(highest, bound(ends, i)), BLOCK_N):
            token = start + tl.arange(0, BLOCK_N)
            mask = (token < bound(ends, i))[:, None] & (channel < CV)[None, :]
            v = tl.load(value + (token - bound(starts, i)).to(tl.int64)[:, None] * sn[i], mask=mask, other=0.0)
            w = operand(tl.load(weight + token[None, :]), UPCAST)
            if PARTS == 2:
                total = tl.dot(operand(tl.load(weight + part + token[None, :]), UPCAST), operand(v, UPCAST), total)
                total = tl.dot(w, operand(v, UPCAST), total)
            else:
                w1 = operand(tl.load(weight + part + token[None, :]), UPCAST)
                w2 = operand(tl.load(weight + 2 * part + token[None, :]), UPCAST)
                if SPLIT_VALUES:
                    v0 = v.to(tl.bfloat16)
                    rest = v - v0.to(tl.float32)
                    v1 = rest.to(tl.bfloat16)
                    v2 = operand((rest - v1.to(tl.float32)).to(tl.bfloat16), UPCAST)
                    total = tl.dot(w, v2, total)
                    total = tl.dot(w1, operand(v1, UPCAST), total)
                    total = tl.dot(w2, operand(v0, UPCAST), total)
                    total = tl.dot(w, operand(v1, UPCAST), total)
                    total = tl.dot(w1, operand(v0, UPCAST), total)
                    total = tl.dot(w, operand(v0, UPCAST), total)
                else:
                    total = tl.dot(w2, operand(v, UPCAST), total)
                    total = tl.dot(w1, operand(v, UPCAST), total)
                    total = tl.dot(w, operand(v, UPCAST), total)
    if PARTS == 2:
        total = total * (1 / HALF_SCALE)
    at = out + (((split * B + b) * Q + first + row.to(tl.int64)[:, None]) * O + o) * CV + channel[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row < count)[:, None] & (channel < CV)[None, :])


@triton.jit(do_not_specialize=["splits", "count", "Q", "first"])
def sum_splits(partial, out, splits, B, count, Q, first, WIDTH, BLOCK: tl.constexpr):
    """out [B, Q, WIDTH] from row ``first``, of partial [splits, B, count, WIDTH]. Grid [count, blocks, B]."""
    b = tl.program_id(2).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        row = (split * B + b) * count + tl.program_id(0)
        total += tl.load(partial + row * WIDTH + at, mask=at < WIDTH, other=0.0)
    row = b * Q + first + tl.program_id(0)
    tl.store(out + row * WIDTH + at, total.to(out.dtype.element_ty), mask=at < WIDTH)


@triton.jit(do_not_specialize=["tiles", "N"])
def add_columns(columns, usage, starts, ends, compact, tiles, NP, N, SEGMENTS: tl.constexpr, ALIGN: tl.constexpr):
    """Adds sums over queries [B, tiles, NP], numbered with gaps, to usage [B, N] without. Grid [blocks of ALIGN, B]."""
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ALIGN + tl.arange(0, ALIGN)
    total = tl.zeros((ALIGN,), tl.float32)
    for tile in range(tiles):
        total += tl.load(columns + (b * tiles + tile) * NP + token)
    for i in tl.static_range(SEGMENTS):
        here = (token >= bound(starts, i)) & (token < bound(ends, i))
        at = usage + b * N + bound(compact, i) + token - bound(starts, i)
        tl.store(at, tl.load(at, mask=here, other=0.0) + total, mask=here)
