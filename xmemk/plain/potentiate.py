"""Memory potentiation, Eq. 3: shrinkage and values of all candidates averaged per prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .blocks import query_blocks
from .operands import operands


def potentiate(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    """-> ps [B, 1, P] float32 (float64 for float64 keys), pv [B, O, CV, P]"""
    mk, ms, mv = memory
    sides = operands(memory, prototypes)
    dtype = sides.query.dtype
    values = [v.to(dtype).transpose(2, 3) for v in mv]
    # The shrinkage is averaged as one more value channel, in full precision.
    if ms is None:
        shrinkage = [k.new_ones(k.shape[0], k.shape[2], 1, dtype=dtype) for k in mk]
    else:
        shrinkage = [s.to(dtype).transpose(1, 2) for s in ms]
    pv, ps = [], []
    for a, b in query_blocks(sides):
        parts = sides.scores(a, b).softmax(2).split([k.shape[2] for k in mk], dim=2)
        pv.append(sum((p.unsqueeze(1) @ v for p, v in zip(parts[1:], values[1:])), parts[0].unsqueeze(1) @ values[0]))
        ps.append(sum((p @ s for p, s in zip(parts[1:], shrinkage[1:])), parts[0] @ shrinkage[0]))
    return torch.cat(ps, 1).transpose(1, 2), torch.cat(pv, 2).transpose(2, 3).to(mv[0].dtype)
