"""Memory potentiation, Eq. 3: shrinkage and values of all candidates averaged per prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from ..modes import differentiated
from .affinity_topk import softmax
from .blocks import query_blocks
from .derivatives import differentiable
from .operands import ACCURATE_OFFSET, operands
from .read_tensors import ReadTensors
from .weighted_sum import weighted_sum

# A prototype is a candidate itself, so the terms of its best score cancel to nothing, and ps is
# float32 whatever the keys are. An offset below this leaves a score within 1e-4, and a
# network's features stay below it: the direct form takes eight times as long.
_ACCURATE_OFFSET = 1e3


def potentiate(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    """-> ps [B, 1, P] float32 (float64 for float64 keys), pv [B, O, CV, P]"""
    layout, tensors = ReadTensors.of(memory, prototypes)

    def average(*tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        return _average(*layout.structs(tensors))

    shrinkage, values = differentiable(average, tensors)
    return shrinkage, values


def _average(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    mk, ms, mv = memory
    # The graph of the direct form would be CK times as large as the scores.
    recorded = differentiated((*mk, *(ms or ()), *prototypes))
    sides = operands(memory, prototypes, ACCURATE_OFFSET if recorded else _ACCURATE_OFFSET)
    dtype = sides.query.dtype
    values = [v.to(dtype).transpose(2, 3) for v in mv]
    b, o, _, channels = values[0].shape
    # The shrinkage is averaged as one more value, in full precision.
    if ms is None:
        shrinkage = [k.new_ones(b, k.shape[2], 1, dtype=dtype) for k in mk]
    else:
        shrinkage = [s.to(dtype).transpose(1, 2) for s in ms]
    pv, ps = [], []
    for start, stop in query_blocks(sides):
        affinity = softmax(sides.scores(start, stop))
        read = [weighted_sum(affinity, [v[:, i] for v in values]) for i in range(o)]
        pv.append(torch.stack(read, 1) if read else affinity.new_zeros(b, 0, stop - start, channels))
        ps.append(weighted_sum(affinity, shrinkage))
    return torch.cat(ps, 1).transpose(1, 2), torch.cat(pv, 2).transpose(2, 3).to(mv[0].dtype)
