"""The memory read as the released XMem formulates it, for timing beside ours: our own words, equal results.

Memory is concatenated, the N x Q similarity is built by two matrix products and four passes over it, top-k runs along
the strided axis, the k weights are scattered into a dense N x Q affinity, and the readout multiplies by all of that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def memory_read(
    mk: list[Tensor], ms: list[Tensor], mv: list[Tensor], qk: Tensor, qe: Tensor, *, top_k: int
) -> tuple[Tensor, Tensor]:
    """-> readout [B, O, CV, Q], usage [B, N]; k <= N. Without subtracting the largest score, as the original."""
    key, shrinkage, value = torch.cat(mk, 2), torch.cat(ms, 2), torch.cat(mv, 3)
    k = key.transpose(1, 2)
    similarity = -(k.pow(2) @ qe) + 2 * (k @ (qk * qe)) - (qe * qk.pow(2)).sum(1, keepdim=True)
    similarity = similarity * shrinkage.transpose(1, 2) / math.sqrt(key.shape[1])
    best, index = similarity.topk(min(top_k, key.shape[2]), dim=1)
    weight = best.exp()
    weight /= weight.sum(1, keepdim=True)
    affinity = torch.zeros_like(similarity).scatter_(1, index, weight)
    return value @ affinity[:, None], affinity.sum(2)
