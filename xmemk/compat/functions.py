"""XMem's four functions, with the hosts' signatures and results, for code that calls them in a row.

Without gradients, similarity and affinity are lazy (:mod:`xmemk.compat.lazy`): they are computed
only when their numbers are used. A chain
``readout(do_softmax(get_similarity(mk, ms, qk, qe), top_k=30), mv)`` is therefore a read without an
N x Q matrix. Peculiarities of the hosts are kept where they show in results. Fewer than ``top_k``
tokens mean all tokens, where the hosts stop with an error.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from .. import api
from .lazy import Lazy, LazySimilarity, SoftAffinity, SparseAffinity


def get_similarity(mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None) -> Tensor:
    """S [B, N, Q], Eq. 2; lazy without gradients.

    mk [B, CK, ...], ms [B, 1, ...] or None for 1, qk [B, CK, ...], qe [B, CK, ...] or None.
    Dimensions from the third on are flattened. Without qe the term |q|^2 is left out, as in the
    released code.
    """
    mk, qk = mk.flatten(2), qk.flatten(2)
    ms = None if ms is None else ms.flatten(1).unsqueeze(1)
    qe = None if qe is None else qe.flatten(2)
    if qe is None:
        product = 2 * (mk.transpose(1, 2) @ qk) - mk.square().sum(1).unsqueeze(2)
        return product * (1 if ms is None else ms.transpose(1, 2)) / math.sqrt(mk.shape[1])
    if _at_once(mk, ms, qk, qe):
        return api.similarity(mk, ms, qk, qe).to(mk.dtype if ms is None else torch.promote_types(mk.dtype, ms.dtype))
    return LazySimilarity(mk, ms, qk, qe)


@overload
def do_softmax(
    similarity: Tensor, top_k: int | None = ..., inplace: bool = ..., return_usage: Literal[False] = ...
) -> Tensor: ...
@overload
def do_softmax(
    similarity: Tensor, top_k: int | None = ..., inplace: bool = ..., *, return_usage: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def do_softmax(
    similarity: Tensor, top_k: int | None = None, inplace: bool = False, return_usage: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """W [B, N, Q], the softmax of S [B, N, Q] over N, or over each query's ``top_k`` largest.

    W is lazy if S is.

    return_usage: also returns usage [B, N], the sum over queries. inplace: a top-k softmax may
    write into S.
    """
    if isinstance(similarity, LazySimilarity) and not similarity.computed:
        similarity.unchanged()
        mk, ms, qk, qe = similarity.inputs
        if top_k is None:
            soft = SoftAffinity(mk, ms, qk, qe)
            return (soft, soft.usage()) if return_usage else soft
        weight, index, *usage = api.affinity_topk(mk, ms, qk, qe, top_k=top_k, return_usage=return_usage)
        affinity: Tensor = SparseAffinity(weight, index, mk.shape[2], similarity.dtype)
        return (affinity, usage[0]) if return_usage else affinity
    dense = similarity.dense() if isinstance(similarity, Lazy) else similarity
    if top_k is None:
        affinity = dense.softmax(1)
    else:
        best, index = dense.topk(min(top_k, dense.shape[1]), dim=1)
        weight = best.softmax(1)
        if inplace and not (torch.is_grad_enabled() and dense.requires_grad):
            affinity = dense.zero_().scatter_(1, index, weight)
        else:
            affinity = torch.zeros_like(dense).scatter(1, index, weight)
    return (affinity, affinity.sum(2)) if return_usage else affinity


def get_affinity(mk: Tensor, ms: Tensor | None, qk: Tensor, qe: Tensor | None) -> Tensor:
    """W [B, N, Q], the softmax of :func:`get_similarity` over all N."""
    return do_softmax(get_similarity(mk, ms, qk, qe))


def readout(affinity: Tensor, mv: Tensor) -> Tensor:
    """Eq. 1: [B, CV, H, W] from values mv [B, CV, T, H, W] and W [B, T H W, H W]."""
    h, w = mv.shape[-2:]
    flat = mv.flatten(2)
    return (flat @ affinity).unflatten(2, (h, w))


def _at_once(*tensors: Tensor | None) -> bool:
    """Whether to compute now: for gradients, and for torch.compile, which fuses what it traces."""
    if torch.compiler.is_compiling():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
