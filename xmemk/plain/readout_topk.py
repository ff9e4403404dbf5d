"""The readout of selected tokens: Eq. 1 over k tokens per query."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modes import Inputs, differentiated
from .blocks import queries_at_a_time
from .derivatives import differentiable
from .operands import compute_dtype
from .tokens import check_index, gather_rows, new_rows, scatter_rows, token_table
from .weighted_sum import sum_of_rows, sum_of_table_rows


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """:func:`read_tokens` of an index that is checked first (see :func:`.tokens.check_index`)."""
    check_index(index, sum(v.shape[3] for v in mv))
    return differentiable(_read, (weight, index, *mv), _gradients)[0]


def _read(weight: Tensor, index: Tensor, *mv: Tensor) -> tuple[Tensor]:
    return (read_tokens(list(mv), weight, index),)


def read_tokens(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> [B, O, CV, Q], in mv's dtype and with channel stride 1"""
    b, o, cv, _ = mv[0].shape
    q, k = index.shape[1:]
    dtype = compute_dtype(mv[0].dtype)
    weight = weight.to(dtype)
    recorded = not torch.compiler.is_compiling() and differentiated((weight, *mv))
    if len(mv) == 1 and dtype == mv[0].dtype and mv[0].numel() > 0 and not recorded:
        out = sum_of_table_rows(weight, *token_table(mv[0], index))
    else:
        # A block of queries at a time: rows are gathered, and those of 16 bits widened.
        step = max(1, queries_at_a_time(q, b * k * o * cv))
        blocks = [
            sum_of_rows(weight[:, a : a + step], gather_rows(mv, index[:, a : a + step], dtype)).to(mv[0].dtype)
            for a in range(0, q, step)
        ]
        out = torch.cat(blocks, 1) if blocks else mv[0].new_zeros(b, 0, o * cv)
    return out.view(b, q, o, cv).permute(0, 2, 3, 1)


def readout_gradients(mv: list[Tensor], weight: Tensor, index: Tensor, upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """upstream [B, Q, O * CV], of the readout -> of weight [B, Q, k] and mv, in weight's dtype"""
    b, o, cv, _ = mv[0].shape
    q, k = index.shape[1:]
    d_weight = torch.zeros_like(weight)
    d_rows = new_rows(mv, weight.dtype)
    step = max(1, queries_at_a_time(q, b * k * o * cv))
    for a in range(0, q, step):
        w, i, d_out = (x[:, a : a + step] for x in (weight, index, upstream))
        d_weight[:, a : a + step] = (gather_rows(mv, i, weight.dtype) @ d_out.unsqueeze(3))[..., 0]
        scatter_rows(d_rows, mv, i, w.unsqueeze(3) * d_out.unsqueeze(2))
    return d_weight, [g.view(b, v.shape[3], o, cv).permute(0, 2, 3, 1) for g, v in zip(d_rows, mv)]


def _gradients(upstream: Inputs, tensors: Inputs) -> Inputs:
    d_readout, weight, index, *mv = (x for x in (*upstream, *tensors) if x is not None)
    dtype = compute_dtype(mv[0].dtype)
    d_out = d_readout.to(dtype).permute(0, 3, 1, 2).flatten(2)
    d_weight, d_values = readout_gradients(mv, weight.to(dtype), index, d_out)
    return d_weight.to(weight.dtype), None, *(g.to(v.dtype) for g, v in zip(d_values, mv))
