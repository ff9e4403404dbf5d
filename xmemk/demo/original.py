"""The memory read as the released XMem formulates it, written anew, for timing beside ours.

It concatenates the memory. It builds the N x Q similarity by two matrix products and four passes
over the matrix. Top-k runs along the strided axis. The k weights are scattered into a dense N x Q
affinity, and the readout multiplies by all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def memory_read(
    mk: list[Tensor], ms: list[Tensor], mv: list[Tensor], qk: Tensor, qe: Tensor, *, top_k: int
) -> tuple[Tensor, Tensor]:
    """Returns readout [B, O, CV, Q] and usage [B, N].

    As in the original, the softmax does not subtract the largest score.
    """
    key, shrinkage, value = torch.cat(mk, 2), torch.cat(ms, 2), torch.cat(mv, 3)
    k = key.transpose(1, 2)
    similarity = -(k.pow(2) @ qe) + 2 * (k @ (qk * qe)) - (qe * qk.pow(2)).sum(1, keepdim=True)
    similarity = similarity * shrinkage.transpose(1, 2) / math.sqrt(key.shape[1])
    best, index = similarity.topk(min(top_k, key.shape[2]), dim=1)
    weight = best.exp()
    weight /= weight.sum(1, keepdim=True)
    affinity = torch.zeros_like(similarity).scatter_(1, index, weight)
    return value @ affinity[:, None], affinity.sum(2)
