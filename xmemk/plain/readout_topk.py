"""The readout of selected tokens: Eq. 1 over k tokens per query."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import queries_at_a_time
from .operands import compute_dtype
from .tokens import check_index, locate, token_table


def readout_topk(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """:func:`read_tokens` of an index that is checked first (see :func:`.tokens.check_index`)."""
    check_index(index, sum(v.shape[3] for v in mv))
    return read_tokens(mv, weight, index)


def read_tokens(mv: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """-> [B, O, CV, Q], in mv's dtype and with channel stride 1"""
    b, o, cv, _ = mv[0].shape
    q, k = index.shape[1:]
    dtype = compute_dtype(mv[0].dtype)
    weight = weight.to(dtype)
    # 16-bit rows are widened before they are added up, a block of queries at a time.
    step = q if dtype == mv[0].dtype else queries_at_a_time(q, b * k * o * cv)
    blocks = []
    for a in range(0, q, max(1, step)):
        w, i = weight[:, a : a + step], index[:, a : a + step]
        parts = [_weighted_rows(v, w * here, local) for v, here, local in locate(mv, i)]
        blocks.append(sum(parts[1:], parts[0]).to(mv[0].dtype))
    out = torch.cat(blocks, 1) if blocks else mv[0].new_zeros(b, 0, o * cv)
    return out.view(b, q, o, cv).permute(0, 2, 3, 1)


def _weighted_rows(v: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """v [B, O, CV, N], weight, index [B, q, k] -> sum_k weight * value [B, q, O * CV]"""
    table, row = token_table(v, index)
    b, q, k = index.shape
    if table.dtype == weight.dtype and table.numel() > 0:
        out = torch.nn.functional.embedding_bag(
            row.view(b * q, k), table, mode="sum", per_sample_weights=weight.reshape(b * q, k)
        )
        return out.view(b, q, table.shape[1])
    rows = table.index_select(0, row.flatten()).view(b, q, k, table.shape[1])
    return (weight.unsqueeze(2) @ rows.to(weight.dtype)).squeeze(2)
