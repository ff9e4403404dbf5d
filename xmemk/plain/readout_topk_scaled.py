"""The readout of selected tokens from values of 8 bits with a scale per group of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import queries_at_a_time
from .tokens import check_index, locate, token_table


def readout_topk_scaled(mv: list[Tensor], scale: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """mv [B, O, CV, N_i], scale [B, O, G, N_i], weight, index [B, Q, k]

    -> [B, O, CV, Q] float32, with channel stride 1.
    """
    check_index(index, sum(v.shape[3] for v in mv))
    b, o, cv, _ = mv[0].shape
    q, k = index.shape[1:]
    step = queries_at_a_time(q, b * k * o * cv)
    codes = [v.view(torch.uint8) for v in mv]  # bytes, which every step of a gather can do
    blocks = []
    for a in range(0, q, max(1, step)):
        w, i = weight[:, a : a + step].float(), index[:, a : a + step]
        parts = []
        for (code, here, local), (factor, _, _) in zip(locate(codes, i), locate(scale, i)):
            value = _rows(code, local).view(mv[0].dtype).float() * _factors(factor, local, cv)
            parts.append(((w * here).unsqueeze(2) @ value.flatten(3)).view(b, i.shape[1], o, cv))
        blocks.append(sum(parts[1:], parts[0]))
    out = torch.cat(blocks, 1) if blocks else weight.new_zeros(b, 0, o, cv, dtype=torch.float32)
    return out.permute(0, 2, 3, 1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, O, C, N], index [B, q, k] -> [B, q, k, O, C]"""
    table, row = token_table(x, index)
    return table.index_select(0, row.flatten()).view(*index.shape, x.shape[1], x.shape[2])


def _factors(scale: Tensor, index: Tensor, channels: int) -> Tensor:
    """scale [B, O, G, N], index [B, q, k] -> [B, q, k, O, CV], or one that broadcasts to it"""
    rows = _rows(scale, index)
    groups = rows.shape[4]
    return rows if groups == 1 else rows.repeat_interleave(-(-channels // groups), dim=4)[..., :channels]
