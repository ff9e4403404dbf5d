"""The same mathematics in other people's formulations, in our own words: what the kernels are
measured beside.

"original": as the released XMem has it (two products, passes over the N x Q matrix, top-k along the
strided axis, a dense affinity, a dense readout). "tidy": a short plain PyTorch: one product of
augmented keys and queries, top-k over the contiguous axis, embedding_bag. Batch 1, shrinkage and
selection given; k None reads all tokens. Each computes in the call what depends on memory or query;
the similarity is float32 for 16-bit inputs, unless the name says otherwise. Readout [1, O, CV, Q];
usage [1, N], or None where the formulation gives none. Packages are imported when they are called
for; what one needs beyond its import (a compiler, a GPU) is its own to say.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

from xmemk.demo import original
from xmemk.testing import Inputs

Read = Callable[[Inputs, "int | None"], "tuple[Tensor, Tensor | None]"]
# The widest head that SDPA's flash and cuDNN kernels, and FlashAttention, take.
WIDEST_HEAD = 256


def wide(t: Tensor) -> Tensor:
    """In float32 where it is in 16 bits."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def widened(x: Inputs) -> Inputs:
    """The same inputs in float32, for a formulation that would compute in 16 bits."""
    return Inputs(*(None if t is None else wide(t) for t in (x.mk, x.ms, x.mv, x.qk, x.qe, x.me, x.usage)))  # type: ignore[arg-type]


def operands(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """memory [N, 2 CK], query [Q, 2 CK], s [N, 1], b [Q, 1]: S = memory query^T - s b^T."""
    assert x.ms is not None and x.qe is not None
    k, q, e = (wide(t[0].T) for t in (x.mk, x.qk, x.qe))
    s = x.ms[0].T.to(k.dtype) / math.sqrt(k.shape[1])
    return torch.cat([-s * k * k, 2 * s * k], 1), torch.cat([e, e * q], 1), s, (e * q * q).sum(1, keepdim=True)


def augmented(x: Inputs) -> tuple[Tensor, Tensor]:
    """Operands [N, 2 CK + 1] and [Q, 2 CK + 1], whose product is the similarity."""
    memory, query, s, b = operands(x)
    return torch.cat([memory, -s], 1), torch.cat([query, b], 1)


def original_read(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    assert x.ms is not None and x.qe is not None
    if k is not None:
        return original.memory_read([x.mk], [x.ms], [x.mv], x.qk, x.qe, top_k=k)
    affinity = original_similarity(x.mk, x.ms, x.qk, x.qe).softmax(1)
    return x.mv @ affinity[:, None].to(x.mv.dtype), affinity.sum(2)


def original_autocast(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    with torch.autocast(x.mk.device.type, torch.float16):
        return original_read(x, k)


def original_similarity(mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None) -> Tensor:
    assert ms is not None and qe is not None
    k = mk.transpose(1, 2)
    similarity = -(k.pow(2) @ qe) + 2 * (k @ (qk * qe)) - (qe * qk.pow(2)).sum(1, keepdim=True)
    return similarity * ms.transpose(1, 2) / math.sqrt(mk.shape[1])


def original_consolidate(x: Inputs, prototypes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-P by usage, a softmax over the candidates, dense readouts of values and shrinkage."""
    index = x.usage.topk(prototypes, dim=1).indices
    row = index[:, None].expand(-1, x.mk.shape[1], -1)
    key, narrow, x = x.mk, x.mv.dtype, widened(x)
    pk = x.mk.gather(2, row)
    affinity = original_similarity(x.mk, x.ms, pk, x.me.gather(2, row)).softmax(1)
    assert x.ms is not None
    return key.gather(2, row), x.ms @ affinity, (x.mv @ affinity[:, None]).to(narrow)


def values_by_token(x: Inputs) -> Tensor:
    """[N, O CV], a view where values are token-major: one gather or product serves all objects."""
    o, cv, n = x.mv.shape[1:]
    return x.mv[0].permute(2, 0, 1).reshape(n, o * cv)


def by_object(read: Tensor, x: Inputs) -> Tensor:
    """[Q, O CV] -> [1, O, CV, Q]."""
    return read.unflatten(1, x.mv.shape[1:3]).permute(1, 2, 0)[None]


def tidy_read(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    memory, query = augmented(x)
    values = values_by_token(x)
    if k is None:
        affinity = (query @ memory.T).softmax(1)
        return by_object(affinity.to(values.dtype) @ values, x), affinity.sum(0)[None]
    return sparse_readout(x, *(query @ memory.T).topk(k, dim=1))


def sparse_readout(x: Inputs, best: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Readout and usage from the scores and tokens [Q, k] of any selection."""
    weight = best.softmax(1)
    usage = weight.new_zeros(x.mk.shape[2]).index_add(0, index.flatten(), weight.flatten())
    values = values_by_token(x)
    read = embedding_bag(index, values, mode="sum", per_sample_weights=weight.to(values.dtype))
    return by_object(read, x), usage[None]


def tidy_consolidate(x: Inputs, prototypes: int) -> tuple[Tensor, Tensor, Tensor]:
    index = x.usage[0].topk(prototypes).indices
    pk, pe = x.mk[..., index], x.me[..., index]
    memory, query = augmented(Inputs(x.mk, x.ms, x.mv, pk, pe, x.me, x.usage))
    affinity = (query @ memory.T).softmax(1)
    assert x.ms is not None
    values = values_by_token(x)
    return pk, (affinity @ x.ms[0].T.to(affinity)).T[None], by_object(affinity.to(values.dtype) @ values, x)


def heads(x: Inputs, halves: int) -> Tensor:
    """[1, O halves, N, CV / halves]: objects are heads, cut where they are too wide."""
    o, cv, n = x.mv.shape[1:]
    return x.mv[0].permute(0, 2, 1).unflatten(2, (halves, cv // halves)).transpose(1, 2).reshape(1, o * halves, n, -1)


def from_heads(read: Tensor, x: Inputs, halves: int) -> Tensor:
    """[1, O halves, Q, CV / halves] -> [1, O, CV, Q]."""
    o, cv = x.mv.shape[1:3]
    return read.unflatten(1, (o, halves)).permute(0, 1, 2, 4, 3).reshape(1, o, cv, -1)


def attention_operands(x: Inputs, one_width: bool) -> tuple[Tensor, Tensor, Tensor, int]:
    """Query, memory and values in the values' dtype, and how often an object's values were cut.

    ``one_width``: keys and values are to be equally wide, so values are cut to at most 256 channels
    and keys padded.
    """
    halves = -(-x.mv.shape[2] // WIDEST_HEAD) if one_width else 1
    values = heads(x, halves)
    width = -(-(2 * x.mk.shape[1] + 1) // 8) * 8
    if one_width:
        width = max(width, values.shape[3])
    memory, query = (pad(t.to(values.dtype), (0, width - t.shape[1])) for t in augmented(x))
    if one_width and width != values.shape[3]:
        values = pad(values, (0, width - values.shape[3]))
    count = values.shape[1]
    return query.expand(1, count, -1, -1), memory.expand(1, count, -1, -1), values, halves


def cut_padding(read: Tensor, x: Inputs, halves: int) -> Tensor:
    return from_heads(read[..., : x.mv.shape[2] // halves], x, halves)


def sdpa(backend: SDPBackend) -> Read:
    """scaled_dot_product_attention on the augmented operands, by one of its backends."""
    one_width = backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)

    def read(x: Inputs, k: int | None) -> tuple[Tensor, None]:
        query, memory, values, halves = attention_operands(x, one_width)
        with warnings.catch_warnings(record=True) as refusals, sdpa_kernel(backend):
            warnings.simplefilter("always")
            try:
                readout = scaled_dot_product_attention(query, memory, values, scale=1.0)
            except RuntimeError as refusal:  # torch gives its reasons as warnings
                reasons = [str(w.message).split(" (Triggered")[0] for w in refusals]
                raise RuntimeError("; ".join(reasons[1:2] or reasons or [str(refusal)])) from None
        return cut_padding(readout, x, halves), None

    return read


def keops(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    """Symbolic matrices: Eq. 2 is evaluated pair by pair, in float32, and never stored.

    Top-k by argKmin, whose distances are computed again for the k tokens; all tokens by a softmax
    reduction, and usage by two more (the logarithm of each query's sum, then a sum over the
    queries).
    """
    lazy = importlib.import_module("pykeops.torch").LazyTensor
    assert x.ms is not None and x.qe is not None
    key, query, selection = (wide(t[0].T).contiguous() for t in (x.mk, x.qk, x.qe))
    s = (x.ms[0].T.to(key.dtype) / math.sqrt(key.shape[1])).contiguous()
    difference = lazy(key[None]) - lazy(query[:, None])
    distance = (lazy(selection[:, None]) * difference**2).sum(-1) * lazy(s[None])
    if k is not None:
        index = distance.argKmin(k, dim=1)
        chosen = key[index] - query[:, None]
        best = -(selection[:, None] * chosen.square()).sum(2) * s[:, 0][index]
        return sparse_readout(x, best, index)
    values = wide(values_by_token(x)).contiguous()
    score = -distance
    read = score.sumsoftmaxweight(lazy(values[None]), dim=1)
    total = score.logsumexp(dim=1)
    usage = (score - lazy(total[:, None].contiguous())).exp().sum(dim=0)
    return by_object(read.to(x.mv.dtype), x), usage.T


def faiss_topk(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    """Exact inner-product search (IndexFlatIP) on augmented keys, readout by embedding_bag."""
    assert k is not None
    faiss: Any = importlib.import_module("faiss")
    memory, query = augmented(x)
    if memory.is_cuda:
        if not hasattr(faiss, "knn_gpu"):
            raise RuntimeError("this faiss has no GPU support")
        importlib.import_module("faiss.contrib.torch_utils")  # lets it take tensors
        best, index = faiss.knn_gpu(faiss.StandardGpuResources(), query, memory, k, metric=faiss.METRIC_INNER_PRODUCT)
        return sparse_readout(x, best, index)
    faiss.omp_set_num_threads(torch.get_num_threads())
    tokens = faiss.IndexFlatIP(memory.shape[1])
    tokens.add(memory.numpy())
    best, index = (torch.from_numpy(array) for array in tokens.search(query.numpy(), k))
    return sparse_readout(x, best, index)


def flash_attention(x: Inputs, k: int | None) -> tuple[Tensor, None]:
    """flash_attn_func in the values' dtype: values in parts of 256 channels, keys padded."""
    query, memory, values, halves = attention_operands(x, True)
    call = importlib.import_module("flash_attn").flash_attn_func
    read = call(*(t.transpose(1, 2) for t in (query, memory, values)), softmax_scale=1.0)
    return cut_padding(read.transpose(1, 2), x, halves), None


def xformers(x: Inputs, k: int | None) -> tuple[Tensor, None]:
    """memory_efficient_attention in the values' dtype on the augmented keys, objects as heads."""
    query, memory, values, halves = attention_operands(x, False)
    ops = importlib.import_module("xformers.ops")
    read = ops.memory_efficient_attention(*(t.transpose(1, 2) for t in (query, memory, values)), scale=1.0)
    return cut_padding(read.transpose(1, 2), x, halves), None
