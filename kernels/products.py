"""Products of float32 accuracy on 16-bit matrix units, for the backward passes.

One factor is stored in 16-bit parts that add up to it, as ``memory_read_weights`` stores weights; the other is 16-bit, or
float32 and split into three bfloat16 as it is read. Of the nine products of three parts and three, six count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .structs import Pointer
from .tiles import in_three_parts


class Strided(NamedTuple):
    """A matrix, or parts of one, with the strides that its index is multiplied by, the batch's first."""

    ptr: Pointer
    strides: tuple[int, ...]


def in_parts(x: Tensor) -> Tensor:
    """x [B, M, K] as parts [B, PARTS, M, K]: itself where it has 16 bits, of float32 three bfloat16."""
    if x.dtype != torch.float32:
        return x[:, None]
    hi = x.bfloat16()
    rest = x - hi.float()
    mid = rest.bfloat16()
    return torch.stack([hi, mid, (rest - mid.float()).bfloat16()], 1)


def multiply(parts: Tensor, other: Tensor, out: Tensor, scale: float = 1.0, add: bool = False) -> None:
    """out [B, M, N] float32 becomes scale * sum of parts [B, PARTS, M, K] times other [B, K, N], or has it added.

    Any strides, but columns of ``out`` lie together. parts and other have the same 16-bit type, or parts are three
    bfloat16 and other is float32. Sums are made in a fixed order. One launch.
    """
    b, count, m, k = parts.shape
    n = other.shape[2]
    if out.numel() == 0:
        return
    split = other.dtype == torch.float32
    config = configs.of("multiply_values_float32" if split else "multiply_values", other)
    block_m, block_n, block_k = config["BLOCK_Q"], config["BLOCK_C"], config["BLOCK_N"]
    left, right = Strided(parts, parts.stride()), Strided(other, other.stride())
    multiply_parts[(-(-m // block_m), -(-n // block_n), b)](
        left, right, Strided(out, out.stride()[:2]), m, n, k, scale, PARTS=count, ADD=add,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, **configs.launch(config),
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "K"])
def multiply_parts(
    parts: Strided, other: Strided, out: Strided, M: tl.tensor, N: tl.tensor, K: tl.tensor, scale: tl.tensor,
    PARTS: tl.constexpr, ADD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of :func:`multiply`. Grid [tiles of M, tiles of N, B]."""
    p_sb, p_sp, p_sm, p_sk = parts.strides
    o_sb, o_sk, o_sn = other.strides
    out_sb, out_sm = out.strides
    b = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    left = parts.ptr + b * p_sb + row[:, None].to(tl.int64) * p_sm
    right = other.ptr + b * o_sb + column[None, :].to(tl.int64) * o_sn
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        y = tl.load(right + k[:, None].to(tl.int64) * o_sk, mask=(k < K)[:, None] & (column < N)[None, :], other=0.0)
        mask = (row < M)[:, None] & (k < K)[None, :]
        at = left + k[None, :].to(tl.int64) * p_sk
        x = tl.load(at, mask=mask, other=0.0)
        if PARTS > 1:
            x1 = tl.load(at + p_sp, mask=mask, other=0.0)
        if PARTS > 2:  # added twice: two times p_sp may be more than 32 bits hold
            x2 = tl.load(at + p_sp + p_sp, mask=mask, other=0.0)
        if other.ptr.dtype.element_ty == tl.float32:
            y0, y1, y2 = in_three_parts(y)
            total = tl.dot(x, y2, total)
            total = tl.dot(x1, y1, total)
            total = tl.dot(x2, y0, total)
            total = tl.dot(x, y1, total)
            total = tl.dot(x1, y0, total)
            total = tl.dot(x, y0, total)
        else:
            if PARTS > 2:
                total = tl.dot(x2, y, total)
            if PARTS > 1:
                total = tl.dot(x1, y, total)
            total = tl.dot(x, y, total)
    total = total * scale
    to = out.ptr + b * out_sb + row[:, None].to(tl.int64) * out_sm + column[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    if ADD:
        total += tl.load(to, mask=inside, other=0.0)
    tl.store(to, total, mask=inside)
