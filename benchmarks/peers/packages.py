"""Reads by packages that may be installed: KeOps, faiss, FlashAttention, xformers. Batch 1, as in
formulations.py.

Each is imported when it is called for. What a package needs beyond its import (a compiler, a GPU)
is its own to say.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor
from xmemk.benchmarks.peers import formulations as f

from xmemk.testing import Inputs


def keops(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    """Symbolic matrices: Eq. 2 is evaluated pair by pair, in float32, and never stored.

    Top-k by argKmin, whose distances are computed again for the k tokens; all tokens by a softmax
    reduction, and usage by two more (the logarithm of each query's sum, then a sum over the
    queries).
    """
    lazy = importlib.import_module("pykeops.torch").LazyTensor
    assert x.ms is not None and x.qe is not None
    key, query, selection = (f.wide(t[0].T).contiguous() for t in (x.mk, x.qk, x.qe))
    s = (x.ms[0].T.to(key.dtype) / math.sqrt(key.shape[1])).contiguous()
    difference = lazy(key[None]) - lazy(query[:, None])
    distance = (lazy(selection[:, None]) * difference**2).sum(-1) * lazy(s[None])
    if k is not None:
        index = distance.argKmin(k, dim=1)
        chosen = key[index] - query[:, None]
        best = -(selection[:, None] * chosen.square()).sum(2) * s[:, 0][index]
        return f.sparse_readout(x, best, index)
    values = f.wide(f.values_by_token(x)).contiguous()
    score = -distance
    read = score.sumsoftmaxweight(lazy(values[None]), dim=1)
    total = score.logsumexp(dim=1)
    usage = (score - lazy(total[:, None].contiguous())).exp().sum(dim=0)
    return f.by_object(read.to(x.mv.dtype), x), usage.T


def faiss_topk(x: Inputs, k: int | None) -> tuple[Tensor, Tensor]:
    """Exact inner-product search (IndexFlatIP) on augmented keys, readout by embedding_bag."""
    assert k is not None
    faiss: Any = importlib.import_module("faiss")
    memory, query = f.augmented(x)
    if memory.is_cuda:
        if not hasattr(faiss, "knn_gpu"):
            raise RuntimeError("this faiss has no GPU support")
        importlib.import_module("faiss.contrib.torch_utils")  # lets it take tensors
        best, index = faiss.knn_gpu(faiss.StandardGpuResources(), query, memory, k, metric=faiss.METRIC_INNER_PRODUCT)
        return f.sparse_readout(x, best, index)
    faiss.omp_set_num_threads(torch.get_num_threads())
    tokens = faiss.IndexFlatIP(memory.shape[1])
    tokens.add(memory.numpy())
    best, index = (torch.from_numpy(found) for found in tokens.search(query.numpy(), k))
    return f.sparse_readout(x, best, index)


def flash_attention(x: Inputs, k: int | None) -> tuple[Tensor, None]:
    """flash_attn_func in the values' dtype: values in parts of 256 channels, keys padded."""
    query, memory, values, halves = f.attention_operands(x, True)
    call = importlib.import_module("flash_attn").flash_attn_func
    read = call(*(t.transpose(1, 2) for t in (query, memory, values)), softmax_scale=1.0)
    return f.cut_padding(read.transpose(1, 2), x, halves), None


def xformers(x: Inputs, k: int | None) -> tuple[Tensor, None]:
    """memory_efficient_attention in the values' dtype on the augmented keys, objects as heads."""
    query, memory, values, halves = f.attention_operands(x, False)
    ops = importlib.import_module("xformers.ops")
    read = ops.memory_efficient_attention(*(t.transpose(1, 2) for t in (query, memory, values)), scale=1.0)
    return f.cut_padding(read.transpose(1, 2), x, halves), None
