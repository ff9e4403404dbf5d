"""The readout of selected tokens from values of 8 bits with a scale per group of channels."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import queries_at_a_time
from .derivatives import differentiable
from .tokens import check_index, gather_rows
from .weighted_sum import sum_of_rows


def readout_topk_scaled(mv: list[Tensor], scale: list[Tensor], weight: Tensor, index: Tensor) -> Tensor:
    """mv [B, O, CV, N_i], scale [B, O, G, N_i], weight, index [B, Q, k]

    -> [B, O, CV, Q] float32, with channel stride 1.
    """
    check_index(index, sum(v.shape[3] for v in mv))
    return differentiable(_read, (weight, index, *mv, *scale))[0]


def _read(weight: Tensor, index: Tensor, *segments: Tensor) -> tuple[Tensor]:
    mv, scale = list(segments[: len(segments) // 2]), list(segments[len(segments) // 2 :])
    b, o, cv, _ = mv[0].shape
    q, k = index.shape[1:]
    groups = scale[0].shape[2]
    step = max(1, queries_at_a_time(q, b * k * o * cv))
    codes = [v.view(torch.uint8) for v in mv]  # bytes, which every step of a gather can do
    blocks = []
    for a in range(0, q, step):
        w, i = weight[:, a : a + step].float(), index[:, a : a + step]
        value = gather_rows(codes, i, torch.uint8).view(mv[0].dtype).float().unflatten(3, (o, cv))
        factor = gather_rows(scale, i, torch.float32).unflatten(3, (o, groups))
        if groups > 1:
            factor = factor.repeat_interleave(-(-cv // groups), dim=4)[..., :cv]
        blocks.append(sum_of_rows(w, (value * factor).flatten(3)))
    out = torch.cat(blocks, 1) if blocks else weight.new_zeros(b, 0, o * cv, dtype=torch.float32)
    return (out.view(b, q, o, cv).permute(0, 2, 3, 1),)
