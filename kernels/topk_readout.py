"""readout_topk: values of the selected tokens, weighted and summed (Eq. 1). One launch."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import bank, configs
from .tiles import bound, origin


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """mv [B, O, CV, N_i], weight, index [B, Q, k] -> readout [B, O, CV, Q] in mv's dtype, with channel stride 1."""
    bank.check_batch("mv", mv[0])
    values = bank.joined([v for v in mv if v.shape[3] > 0])
    return read(values, *bank.numbers(values), weight, index)


def read(
    values: tuple[Tensor, ...], starts: tuple[Any, ...], ends: tuple[Any, ...], weight: Tensor, index: Tensor
) -> Tensor:
    """The same of at most SEGMENTS segments that are not empty, numbered as ``tiles`` says."""
    b, o, cv, _ = values[0].shape
    q, k = index.shape[1:]
    out = values[0].new_empty((b, q, o, cv))
    if out.numel() > 0:
        config = configs.of("read_rows", values[0])
        block = min(config["BLOCK_C"], max(16, configs.power_of_2_from(cv)))
        blocks = -(-cv // block)
        read_rows[(q, o * blocks, b)](
            values,
            starts,
            ends,
            *bank.strides(values),
            weight.contiguous(),
            index.contiguous(),
            out,
            q,
            o,
            cv,
            k,
            blocks,
            len(values),
            block,
            min(config["SLOTS"], configs.power_of_2_from(k)),
            **configs.launch(config),
        )
    return out.permute(0, 2, 3, 1)


@triton.jit(do_not_specialize=["Q"])
def read_rows(
    mv,
    starts,
    ends,
    sb,
    so,
    sc,
    sn,
    weight,
    index,
    out,
    Q,
    O,  # noqa: E741
    CV,
    K,
    blocks,
    SEGMENTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """out [B, Q, O, CV]: sum over K slots of weight * value, float32 sums in the order of the slots.

    Grid [Q, O * blocks of BLOCK_C channels, B]: neighbouring programs read neighbouring queries, which share tokens.
    """
    b = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0).to(tl.int64)
    o = (tl.program_id(1) // blocks).to(tl.int64)
    channel = tl.program_id(1) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float32)
    row = (b * Q + query) * K
    for first in range(0, K, SLOTS):
        for i in tl.static_range(SLOTS):
            slot = first + i
            w = tl.load(weight + row + slot, mask=slot < K, other=0.0).to(tl.float32)
            token = tl.load(index + row + slot, mask=slot < K, other=-1)
            # Segments follow one another: the last one that starts before a token holds it.
            at = mv[0] + b * sb[0] + o * so[0] + (token - origin(starts, 0)) * sn[0]
            stride = sc[0]
            for j in tl.static_range(1, SEGMENTS):
                here = token >= bound(starts, j)
                at = tl.where(here, mv[j] + b * sb[j] + o * so[j] + (token - origin(starts, j)) * sn[j], at)
                stride = tl.where(here, sc[j], stride)
            width = tl.where((token >= 0) & (token < bound(ends, SEGMENTS - 1)), CV, 0)
            x = tl.load(at + channel.to(tl.int64) * stride, mask=channel < width, other=0.0)
            total += x.to(tl.float32) * w
    tl.store(out + ((b * Q + query) * O + o) * CV + channel, total.to(out.dtype.element_ty), mask=channel < CV)
