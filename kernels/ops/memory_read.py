"""memory_read of all tokens: weights in blocks of queries (memory_read_weights.py), each multiplied with all values.

The blocks bound the extra memory (WEIGHT_BYTES). That weights are written makes one product of them with the values of
all objects, at the cost of writing and reading them once. Sums over queries or over splits of the memory are made in a
fixed order: there are no atomics.

Weights and values are multiplied in 16 bits to float32 accuracy: float16 values with weights in two parts, bfloat16
values with weights in three, float32 values and weights in three parts each, of which six products count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...inputs import MemoryInputs, QueryInputs
from .. import configs
from ..structs import Segments, ValueArgs, query_args, segments, value_args
from ..tiles import bound, in_three_parts
from .memory_read_lse import ALIGN, PROGRAMS, affinity, split_bounds
from .memory_read_weights import BLOCK_ROWS, FORMATS, HALF_SCALE, weights

WEIGHT_BYTES = 32 << 20  # of weights at a time, but at least a block of queries
MOST_SPLITS = 16  # of 8 tiles of a block of queries at 480p: a program for nearly every multiprocessor of an H100
SUMMED = 1024  # numbers of a program that sums splits

_ALIGN = tl.constexpr(ALIGN)
_SUMMED = tl.constexpr(SUMMED)


def memory_read(memory: MemoryInputs, queries: QueryInputs, return_usage: bool) -> tuple[Tensor, Tensor | None]:
    """-> readout [B, O, CV, Q] in mv's dtype, with channel stride 1; usage [B, N] float32 or None."""
    readout, usage, _ = read(memory, queries, return_usage, return_shrinkage=False)
    return readout, usage


def read(
    memory: MemoryInputs, queries: QueryInputs, return_usage: bool, return_shrinkage: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """-> readout, usage or None, and the shrinkage read as the values are, [B, 1, Q] float32, or None."""
    qk, mv = queries.qk, memory.mv[0]
    b, o, cv, _ = mv.shape
    q = qk.shape[2]
    used = segments(memory, ALIGN)
    out = mv.new_empty((b, q, o, cv))
    usage = qk.new_zeros((b, used.tokens), dtype=torch.float32) if return_usage else None
    shrinkage = qk.new_empty((b, 1, q), dtype=torch.float32) if return_shrinkage else None
    if q > 0 and b > 0:
        values = value_args(memory.mv, ALIGN)
        a = affinity(used, query_args(queries))
        form = FORMATS[mv.dtype]
        np, qp = a.operands.NP, a.operands.QP
        most = max(BLOCK_ROWS, WEIGHT_BYTES // (2 * form[0] * b * np) // BLOCK_ROWS * BLOCK_ROWS)
        rows = -(-qp // (-(-qp // most)) // BLOCK_ROWS) * BLOCK_ROWS
        for first in range(0, qp, rows):
            count = min(rows, qp - first)
            w = weights(a, first, count, form, return_usage, return_shrinkage)
            if out.numel() > 0:
                _multiply(w.parts, values, out, first, min(count, q - first))
            if usage is not None and w.columns is not None:
                _add_usage(w.columns, used, usage)
            if shrinkage is not None and w.shrinkage is not None:
                shrinkage[:, 0, first : first + count] = w.shrinkage.sum(1)[:, : min(count, q - first)]
            del w  # before those of the next block are made
    return out.permute(0, 2, 3, 1), usage, shrinkage


def _multiply(parts: Tensor, values: ValueArgs, out: Tensor, first: int, count: int) -> None:
    """Rows [first, first + count) of out [B, Q, O, CV] from weights [B, parts, rows, NP]; one launch, or two."""
    b, q, o, cv = out.shape
    rows, np = parts.shape[2:]
    config = configs.of("multiply_values_float32" if out.dtype == torch.float32 else "multiply_values", out)
    block_q, block_c = config["BLOCK_Q"], config["BLOCK_C"]
    channels = -(-cv // block_c)
    tiles = rows // block_q * channels * o * b
    splits = max(1, min(MOST_SPLITS, PROGRAMS // tiles, np // ALIGN // 4))
    whole = splits == 1
    target = out if whole else parts.new_empty((splits, b, count, o, cv), dtype=torch.float32)
    multiply_values[(rows // block_q * channels, o * splits, b)](
        parts, values, target, rows, np, Q=q if whole else count, O=o, CV=cv, first=first if whole else 0, count=count,
        channels=channels, splits=splits, B=b, BLOCK_Q=block_q, BLOCK_C=block_c, BLOCK_N=config["BLOCK_N"],
        **configs.launch(config),
    )  # fmt: skip
    if not whole:
        width = o * cv
        sum_splits[(count, -(-width // SUMMED), b)](target, out, splits, b, count, q, first, width)


def _add_usage(columns: Tensor, memory: Segments, usage: Tensor) -> None:
    b, tiles, np = columns.shape
    starts, ends = memory.args.starts, memory.args.ends
    add_columns[(np // ALIGN, b)](columns, usage, starts, ends, memory.compact[0], tiles, np, memory.tokens)


@triton.jit(do_not_specialize=["Q", "first", "count", "splits"])
def multiply_values(
    parts: tl.tensor, values: ValueArgs, out: tl.tensor, rows: tl.tensor, NP: tl.tensor,
    Q: tl.tensor, O: tl.tensor, CV: tl.tensor, first: tl.tensor, count: tl.tensor,  # noqa: E741
    channels: tl.tensor, splits: tl.tensor, B: tl.tensor,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
) -> None:  # fmt: skip
    """out [splits, B, Q, O, CV], rows [first, first + count): sum over a split of the tokens of weight * value.

    parts [B, PARTS, rows, NP] are weights as memory_read_weights.py writes them. Grid [blocks of queries * blocks of
    channels, O * splits, B].
    """
    PARTS: tl.constexpr = 2 if parts.dtype.element_ty == tl.float16 else 3
    SPLIT_VALUES: tl.constexpr = values.mv[0].dtype.element_ty == tl.float32
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) // channels * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channel = tl.program_id(0) % channels * BLOCK_C + tl.arange(0, BLOCK_C)
    o = (tl.program_id(1) % O).to(tl.int64)
    split = tl.program_id(1) // O
    lowest, highest = split_bounds(split, NP // _ALIGN, splits)
    weight = parts + (b * PARTS * rows + row.to(tl.int64)[:, None]) * NP
    part = rows.to(tl.int64) * NP
    total = tl.zeros((BLOCK_Q, BLOCK_C), tl.float32)
    for i in tl.static_range(len(values.mv)):
        value = values.mv[i] + b * values.sb[i] + o * values.so[i] + channel[None, :].to(tl.int64) * values.sc[i]
        # Both are multiples of ALIGN. The compiler does not know it; the division says it, which makes loads wide.
        low = tl.maximum(lowest, bound(values.starts, i)) // BLOCK_N * BLOCK_N
        for start in range(low, tl.minimum(highest, bound(values.ends, i)), BLOCK_N):
            token = start + tl.arange(0, BLOCK_N)
            mask = (token < bound(values.ends, i))[:, None] & (channel < CV)[None, :]
            at = value + (token - bound(values.starts, i)).to(tl.int64)[:, None] * values.sn[i]
            v = tl.load(at, mask=mask, other=0.0)
            w = tl.load(weight + token[None, :])
            if PARTS == 2:
                total = tl.dot(tl.load(weight + part + token[None, :]), v, total)
                total = tl.dot(w, v, total)
            else:
                w1 = tl.load(weight + part + token[None, :])
                w2 = tl.load(weight + 2 * part + token[None, :])
                if SPLIT_VALUES:
                    v0, v1, v2 = in_three_parts(v)
                    total = tl.dot(w, v2, total)
                    total = tl.dot(w1, v1, total)
                    total = tl.dot(w2, v0, total)
                    total = tl.dot(w, v1, total)
                    total = tl.dot(w1, v0, total)
                    total = tl.dot(w, v0, total)
                else:
                    total = tl.dot(w2, v, total)
                    total = tl.dot(w1, v, total)
                    total = tl.dot(w, v, total)
    if PARTS == 2:
        total = total * (1 / HALF_SCALE)
    at = out + (((split * B + b) * Q + first + row.to(tl.int64)[:, None]) * O + o) * CV + channel[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row < count)[:, None] & (channel < CV)[None, :])


@triton.jit(do_not_specialize=["splits", "count", "Q", "first"])
def sum_splits(
    partial: tl.tensor, out: tl.tensor, splits: tl.tensor, B: tl.tensor, count: tl.tensor, Q: tl.tensor,
    first: tl.tensor, WIDTH: tl.tensor,
) -> None:  # fmt: skip
    """out [B, Q, WIDTH] from row ``first``, of partial [splits, B, count, WIDTH]. Grid [count, blocks, B]."""
    b = tl.program_id(2).to(tl.int64)
    at = tl.program_id(1) * _SUMMED + tl.arange(0, _SUMMED)
    total = tl.zeros((_SUMMED,), tl.float32)
    for split in range(splits):
        row = (split * B + b) * count + tl.program_id(0)
        total += tl.load(partial + row * WIDTH + at, mask=at < WIDTH, other=0.0)
    row = b * Q + first + tl.program_id(0)
    tl.store(out + row * WIDTH + at, total.to(out.dtype.element_ty), mask=at < WIDTH)


@triton.jit(do_not_specialize=["tiles", "N"])
def add_columns(
    columns: tl.tensor, usage: tl.tensor, starts: tl.tuple, ends: tl.tuple,
    compact: tl.tuple, tiles: tl.tensor, NP: tl.tensor, N: tl.tensor,
) -> None:  # fmt: skip
    """Adds sums over queries [B, tiles, NP], numbered from ``starts``, to usage [B, N], numbered from ``compact``.

    Grid [blocks of ALIGN, B].
    """
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * _ALIGN + tl.arange(0, _ALIGN)
    total = tl.zeros((_ALIGN,), tl.float32)
    for tile in range(tiles):
        total += tl.load(columns + (b * tiles + tile) * NP + token)
    for i in tl.static_range(len(starts)):
        here = (token >= bound(starts, i)) & (token < bound(ends, i))
        at = usage + b * N + bound(compact, i) + token - bound(starts, i)
        tl.store(at, tl.load(at, mask=here, other=0.0) + total, mask=here)
