"""The same mathematics in other people's formulations, in our own words: what the kernels are measured beside.

"original": as the released XMem has it (two products, passes over the N x Q matrix, top-k along the strided axis, a
dense affinity, a dense readout). "tidy": the best plain PyTorch we know: one product of augmented keys and queries,
top-k over the contiguous axis, embedding_bag. Batch 1, shrinkage and selection given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from xmemk.demo import original
from xmemk.testing import Inputs


def augmented(x: Inputs) -> tuple[Tensor, Tensor]:
    """Memory operand [N, 2 CK + 1] and query operand [Q, 2 CK + 1], whose product is the similarity."""
    assert x.ms is not None and x.qe is not None
    k, q, e = (t[0].T for t in (x.mk, x.qk, x.qe))
    s = x.ms[0].T.to(k.dtype) / math.sqrt(k.shape[1])
    memory = torch.cat([-s * k * k, 2 * s * k, -s], 1)
    return memory, torch.cat([e, e * q, (e * q * q).sum(1, keepdim=True)], 1)


def original_topk(x: Inputs, k: int) -> tuple[Tensor, Tensor]:
    assert x.ms is not None and x.qe is not None
    return original.memory_read([x.mk], [x.ms], [x.mv], x.qk, x.qe, top_k=k)


def original_dense(x: Inputs) -> tuple[Tensor, Tensor]:
    affinity = original_similarity(x.mk, x.ms, x.qk, x.qe).softmax(1)
    return x.mv @ affinity[:, None], affinity.sum(2)


def original_similarity(mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None) -> Tensor:
    assert ms is not None and qe is not None
    k = mk.transpose(1, 2)
    similarity = -(k.pow(2) @ qe) + 2 * (k @ (qk * qe)) - (qe * qk.pow(2)).sum(1, keepdim=True)
    return similarity * ms.transpose(1, 2) / math.sqrt(mk.shape[1])


def original_consolidate(x: Inputs, prototypes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-P by usage, a softmax over the candidates, one dense readout for the values and one for the shrinkage."""
    index = x.usage.topk(prototypes, dim=1).indices
    row = index[:, None].expand(-1, x.mk.shape[1], -1)
    pk = x.mk.gather(2, row)
    affinity = original_similarity(x.mk, x.ms, pk, x.me.gather(2, row)).softmax(1)
    assert x.ms is not None
    return pk, x.ms @ affinity, x.mv @ affinity[:, None]


def tidy_topk(x: Inputs, k: int) -> tuple[Tensor, Tensor]:
    memory, query = augmented(x)
    best, index = (query @ memory.T).topk(k, dim=1)
    weight = best.softmax(1)
    usage = weight.new_zeros(memory.shape[0]).index_add(0, index.flatten(), weight.flatten())
    read = [embedding_bag(index, v.T.contiguous(), mode="sum", per_sample_weights=weight.to(v.dtype)) for v in x.mv[0]]
    return torch.stack(read)[None].transpose(2, 3), usage[None]


def tidy_dense(x: Inputs) -> tuple[Tensor, Tensor]:
    memory, query = augmented(x)
    affinity = (query @ memory.T).softmax(1)
    return torch.stack([affinity @ v.T for v in x.mv[0]])[None].transpose(2, 3), affinity.sum(0)[None]


def tidy_consolidate(x: Inputs, prototypes: int) -> tuple[Tensor, Tensor, Tensor]:
    index = x.usage[0].topk(prototypes).indices
    pk, pe = x.mk[..., index], x.me[..., index]
    asked = Inputs(x.mk, x.ms, x.mv, pk, pe, x.me, x.usage)
    memory, query = augmented(asked)
    affinity = (query @ memory.T).softmax(1)
    assert x.ms is not None
    pv = torch.stack([affinity @ v.T for v in x.mv[0]])[None].transpose(2, 3)
    return pk, (affinity @ x.ms[0].T).T[None], pv


def sdpa_dense(x: Inputs) -> tuple[Tensor, None]:
    """scaled_dot_product_attention on the augmented operands: it gives no usage."""
    memory, query = augmented(x)
    read = [scaled_dot_product_attention(query[None], memory[None], v.T[None], scale=1.0)[0] for v in x.mv[0]]
    return torch.stack(read)[None].transpose(2, 3), None
