"""readout_topk: values of the selected tokens, weighted and summed (Eq. 1). One launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .. import configs
from ..structs import ValueArgs, value_args
from ..tiles import bound, origin


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """mv [B, O, CV, N_i], weight, index [B, Q, k] -> readout [B, O, CV, Q] in mv's dtype, with channel stride 1."""
    return read(value_args(mv), weight, index)


def read(values: ValueArgs, weight: Tensor, index: Tensor) -> Tensor:
    """The same of values as the kernels take them."""
    mv = values.mv[0]
    b, o, cv, _ = mv.shape
    q, k = index.shape[1:]
    out = mv.new_empty((b, q, o, cv))
    if out.numel() > 0:
        config = configs.of("read_rows", mv)
        block = min(config["BLOCK_C"], max(16, configs.power_of_2_from(cv)))
        blocks = -(-cv // block)
        read_rows[(q, o * blocks, b)](
            values, weight.contiguous(), index.contiguous(), out, Q=q, O=o, CV=cv, K=k, blocks=blocks,
            BLOCK_C=block, SLOTS=min(config["SLOTS"], configs.power_of_2_from(k)), **configs.launch(config),
        )  # fmt: skip
    return out.permute(0, 2, 3, 1)


@triton.jit(do_not_specialize=["Q"])
def read_rows(
    values: ValueArgs, weight: tl.tensor, index: tl.tensor, out: tl.tensor,
    Q: tl.tensor, O: tl.tensor, CV: tl.tensor, K: tl.tensor, blocks: tl.tensor,  # noqa: E741
    BLOCK_C: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
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
            at, stride = _row(values, b, o, token, 0)
            for j in tl.static_range(1, len(values.mv)):
                here = token >= bound(values.starts, j)
                other, other_stride = _row(values, b, o, token, j)
                at = tl.where(here, other, at)
                stride = tl.where(here, other_stride, stride)
            exists = (token >= 0) & (token < bound(values.ends, len(values.ends) - 1))
            width = tl.where(exists, CV, 0)
            x = tl.load(at + channel.to(tl.int64) * stride, mask=channel < width, other=0.0)
            total += x.to(tl.float32) * w
    tl.store(out + ((b * Q + query) * O + o) * CV + channel, total.to(out.dtype.element_ty), mask=channel < CV)


@triton.jit
def _row(
    values: ValueArgs, b: tl.tensor, o: tl.tensor, token: tl.tensor, i: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Where a token's values lie if it is of the i-th segment: a pointer to its first channel, and their stride."""
    at = values.mv[i] + b * values.sb[i] + o * values.so[i] + (token - origin(values.starts, i)) * values.sn[i]
    return at, values.sc[i]
