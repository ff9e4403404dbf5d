"""The oracle's stateless functions: the paper's formulas in plain PyTorch.

They have the names and signatures of the public functions, without ``backend``. Arithmetic runs in
the dtype of the keys, so float64 inputs give the float64 truth that every backend is measured
against. Differentiable by plain autograd. Shapes: B batch, O objects, CK key channels, CV value
channels, N memory tokens, Q query tokens, P prototypes.

Rules where the paper is silent:

* A similarity that is NaN or +inf (from a key or shrinkage that is not finite) counts as -inf, so
  that the token has weight 0.
* A query without any finite similarity reads NaN, and adds nothing to usage.
* Of equal scores at rank k, and of equal usage, the lower index is preferred. A NaN usage ranks
  below every number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Segments = Tensor | Sequence[Tensor]
OptionalSegments = Tensor | Sequence[Tensor] | None


def similarity(mk: Segments, ms: OptionalSegments, qk: Tensor, qe: Tensor | None) -> Tensor:
    """:func:`xmemk.similarity`: Eq. 2, scaled by 1/sqrt(CK) as in the released code.

    Returns [B, N, Q].
    """
    mk, ms = _joined(mk), _maybe_joined(ms)
    if qe is None:  # Eq. 2 with e = 1: plain L2
        qe = torch.ones_like(qk)
    # sum_c e (k - q)^2 = e.k^2 - 2 k.(e q) + e.q^2
    k = mk.transpose(1, 2)
    distance = k.square() @ qe - 2 * (k @ (qk * qe)) + (qe * qk.square()).sum(1, keepdim=True)
    if not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        finite = mk.isfinite().all(1, keepdim=True).transpose(1, 2) & (qk * qe).isfinite().all(1, keepdim=True)
        if bool((finite & ~distance.isfinite()).any()):  # a product overflows
            distance = _distance(mk, qk, qe)
    scale = mk.new_ones(()) if ms is None else ms.to(mk.dtype).transpose(1, 2)
    return -distance * scale / math.sqrt(mk.shape[1])


def _distance(mk: Tensor, qk: Tensor, qe: Tensor) -> Tensor:
    """sum_c e (k - q)^2 as it is written, [B, N, Q]"""
    distance = qk.new_zeros(())
    for k, q, e in zip(mk.unbind(1), qk.unbind(1), qe.unbind(1)):
        difference = k.unsqueeze(2) - q.unsqueeze(1)
        distance = distance + difference * e.unsqueeze(1) * difference
    return distance


def affinity_topk(
    mk: Segments,
    ms: OptionalSegments,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int,
    return_usage: bool = False,
    hint: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """:func:`xmemk.affinity_topk`: softmax over the k most similar tokens.

    Returns weight and index [B, Q, min(k, N)] and, on request, usage [B, N]. A hint is checked.
    """
    _check_hint(hint, mk, qk)
    score = _readable(similarity(mk, ms, qk, qe)).transpose(1, 2)
    n = score.shape[2]
    order = torch.sort(score, dim=2, descending=True, stable=True).indices[:, :, : min(top_k, n)]
    best = score.gather(2, order)
    # Where fewer than k tokens can be read, unused slots repeat the best token with weight 0.
    index = torch.where(best == -math.inf, order[:, :, :1], order)
    weight = best.softmax(2)
    if not return_usage:
        return weight, index
    usage = weight.new_zeros(weight.shape[0], n)
    usage = usage.scatter_add(1, index.flatten(1), weight.flatten(1).nan_to_num(0.0))
    return weight, index, _usage_dtype(usage)


def readout_topk(mv: Segments, weight: Tensor, index: Tensor) -> Tensor:
    """:func:`xmemk.readout_topk`: Eq. 1 over the selected tokens only. Returns [B, O, CV, Q]."""
    mv = _joined(mv)
    b, o, cv, _ = mv.shape
    out = mv.new_zeros(b, o, cv, index.shape[1])
    for j in range(index.shape[2]):
        row = index[:, None, None, :, j].expand(b, o, cv, -1)
        out = out + mv.gather(3, row) * weight[:, None, None, :, j].to(mv.dtype)
    return out


def memory_read(
    mk: Segments,
    ms: OptionalSegments,
    mv: Segments,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int | None = None,
    return_usage: bool = False,
    hint: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`xmemk.memory_read`: Eq. 1, F = v W(k, q).

    W is the softmax of Eq. 2 over all tokens or the k best. A hint is checked.
    """
    _check_hint(hint, mk, qk)
    mk, ms, mv = _joined(mk), _maybe_joined(ms), _joined(mv)
    if mk.shape[2] == 0:
        raise ValueError("mk: the memory is empty (N = 0); there is nothing to read")
    if top_k is not None and top_k < mk.shape[2]:
        weight, index, usage = affinity_topk(mk, ms, qk, qe, top_k=top_k, return_usage=True)
        readout = readout_topk(mv, weight, index)
    else:
        affinity = _readable(similarity(mk, ms, qk, qe)).softmax(1)
        readout = mv @ affinity[:, None].to(mv.dtype)
        usage = _usage_dtype(affinity.nan_to_num(0.0).sum(2))
    return (readout, usage) if return_usage else readout


def select_prototypes(usage: Tensor, num_prototypes: int) -> Tensor:
    """:func:`xmemk.select_prototypes`: the P most used tokens [B, P] (Sec. 2.3)."""
    # The stable ascending sort of the negated usage puts the most used first, the older of equals
    # first, and NaN last.
    return torch.sort(-usage, dim=1, stable=True).indices[:, :num_prototypes]


def consolidate(
    mk: Tensor,
    ms: Tensor | None,
    me: Tensor | None,
    mv: Tensor,
    usage: Tensor,
    num_prototypes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`xmemk.consolidate`: prototype selection (Sec. 2.3) and potentiation (Eq. 3).

    Returns pk, ps, pv.
    """
    index = select_prototypes(usage, num_prototypes)
    row = index[:, None].expand(-1, mk.shape[1], -1)
    pk = mk.gather(2, row)
    pe = None if me is None else me.gather(2, row)
    if ms is None:
        ms = mk.new_ones(mk.shape[0], 1, mk.shape[2])
    # The shrinkage is potentiated as one more value channel ("updated in the same way as the
    # value", footnote 2).
    pv = memory_read(mk, ms, mv, pk, pe)
    ps = memory_read(mk, ms, ms[:, None].to(mk.dtype), pk, pe)
    assert isinstance(pv, Tensor) and isinstance(ps, Tensor)
    return pk, _usage_dtype(ps[:, 0]), pv


def evict_lfu(usage: Tensor, keep: int) -> Tensor:
    """:func:`xmemk.evict_lfu`: the tokens [B, keep] that stay after LFU eviction (Sec. 2.3)."""
    # As in select_prototypes, but newest first, so that the older of equals is evicted.
    newest_first = torch.sort(-usage.flip(1), dim=1, stable=True).indices[:, :keep]
    return (usage.shape[1] - 1 - newest_first).sort(dim=1).values


def _check_hint(hint: Tensor | None, mk: Segments, qk: Tensor) -> None:
    if hint is None:
        return
    if not isinstance(hint, Tensor) or hint.dtype != torch.int64:
        got = hint.dtype if isinstance(hint, Tensor) else type(hint).__name__
        raise TypeError(f"hint: wanted an int64 tensor [B, Q, k], got {got}")
    b, _, q = qk.shape
    if hint.dim() != 3 or tuple(hint.shape[:2]) != (b, q):
        raise ValueError(f"hint: wanted [B={b}, Q={q}, k] to go with qk {list(qk.shape)}, got {list(hint.shape)}")
    if hint.device != qk.device:
        raise ValueError(f"hint: wanted device {qk.device} as qk, got {hint.device}")
    tokens = _joined(mk).shape[2]
    outside = hint[(hint < 0) | (hint >= tokens)]
    if outside.numel() > 0:
        raise IndexError(f"hint: wanted 0 to {tokens - 1} (N = {tokens} tokens), got {int(outside[0])}")


def _joined(segments: Segments) -> Tensor:
    """Segments as one tensor. The oracle may copy; the backends may not."""
    return segments if isinstance(segments, Tensor) else torch.cat(list(segments), dim=-1)


def _maybe_joined(segments: OptionalSegments) -> Tensor | None:
    return None if segments is None else _joined(segments)


def _readable(score: Tensor) -> Tensor:
    return torch.where(score.isnan() | (score == math.inf), -math.inf, score)


def _usage_dtype(usage: Tensor) -> Tensor:
    """Usage and shrinkage in their type: float32, or float64 with float64 keys."""
    return usage if usage.dtype == torch.float64 else usage.float()
