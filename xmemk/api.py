"""The public stateless functions: signature, shapes, checks, choice of backend.

B batch, O objects, CK key channels, CV value channels, N memory tokens, Q query tokens, P
prototypes. Tensors may have any strides; channel stride 1 ("token-major") is the fast layout. Keys,
values and queries are float32, float16, bfloat16 or float64; arithmetic is float32 at least.
Shrinkage and usage are float32. The memory may be given as a list of segments (permanent,
long-term, working, some of them empty), read as one memory without concatenating.

Every function takes ``backend``: "auto", or one of "cuda", "triton", "cpu", "torch" by name, which
then serves the call or raises ValueError. TypeError and ValueError name the argument, what was
wanted and what came.

Rules where the paper is silent, the same for every backend:

* A similarity that is NaN or +inf (a key or shrinkage that is not finite, or terms of Eq. 2 that
  overflow) counts as -inf: that token has weight 0. Backend "torch" on a GPU or under
  torch.compile counts so, too, what overflows only in the expanded form.
* A query without any finite similarity reads NaN, and adds nothing to usage.
* Values must be finite: one that is not spreads to all queries of a dense read, to those that
  select it in a top-k read. In a consolidation shrinkage is averaged as a value is.
* Equal scores at rank k, and equal usage: the lower index is preferred. NaN usage ranks below every
  number.

Derivatives, under autocast as without it:

* memory_read, readout_topk, similarity and consolidate are differentiable to any order where they
  have a gradient (see :func:`explain`). Backend "torch" has one for each; the others for
  memory_read. Beyond the first order plain PyTorch computes them, which stores N x Q numbers.
* Forward mode and the transforms of torch.func (grad, vjp, jvp, jacrev, jacfwd, hessian, vmap) are
  served by backend "torch", which "auto" then takes. Every other backend refuses with ValueError.
* Under torch.compile there are first derivatives only: PyTorch has no others there.
* affinity_topk, select_prototypes and evict_lfu have no derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import backends, checks
from .backends import Call, Explanation
from .modes import full_precision, transformed

Segments = Tensor | Sequence[Tensor]


@overload
def memory_read(
    mk: Segments,
    ms: Segments | None,
    mv: Segments,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int | None = ...,
    return_usage: Literal[False] = ...,
    hint: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def memory_read(
    mk: Segments,
    ms: Segments | None,
    mv: Segments,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int | None = ...,
    return_usage: Literal[True],
    hint: Tensor | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def memory_read(
    mk: Segments,
    ms: Segments | None,
    mv: Segments,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int | None = None,
    return_usage: bool = False,
    hint: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """F = v W(k, q) of Eq. 1. W is the softmax over memory tokens of the similarity S of Eq. 2:

        S[n, q] = -(ms[n] / sqrt(CK)) * sum_c qe[c, q] (mk[c, n] - qk[c, q])^2

    Args:
        mk: keys [B, CK, N], or a list of segments [B, CK, N_i].
        ms: shrinkage [B, 1, N] (a list if mk is one), or None for 1.
        mv: values [B, O, CV, N] (a list if mk is one); any floating dtype.
        qk: query keys [B, CK, Q], in mk's dtype.
        qe: selection [B, CK, Q] in mk's dtype, or None for 1 (plain L2).
        top_k: restrict the softmax to the k most similar tokens of each query, exactly. None, or a
            top_k of N or more, means all.
        return_usage: also return the probability mass each token received (Sec. 2.3).
        hint: tokens [B, Q, k'] int64 that are likely to be among the best of each query, such as
            last frame's; any hint changes time only, and only on backend "cpu".

    Returns:
        readout [B, O, CV, Q] in mv's dtype, with channel stride 1; with ``return_usage`` also
        usage [B, N] float32 (float64 for float64 keys), which sums to Q over N.

    Differentiable in mk, ms, mv, qk and qe, to any order; neither backend "cpu" nor "torch" in
    eager mode stores an N x Q matrix for the first backward pass.
    Raises TypeError or ValueError for wrong types, shapes, dtypes or devices, and for an empty
    memory; IndexError for a hint outside 0 .. N - 1, which is looked at in eager mode on the CPU.
    """
    memory, queries = checks.read(mk, ms, mv, qk, qe)
    if top_k is not None:
        checks.top_k(top_k)
    checks.hint(hint, queries.qk, memory.tokens)
    run = _kernel("memory_read", (*memory.tensors, *queries), backend, top_k, hint)
    with full_precision(qk):
        readout, usage = run(memory, queries, top_k, return_usage)
    return readout if usage is None else (readout, usage)


def affinity_topk(
    mk: Segments,
    ms: Segments | None,
    qk: Tensor,
    qe: Tensor | None,
    *,
    top_k: int,
    return_usage: bool = False,
    hint: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """The sparse affinity W of a top-k read (see :func:`memory_read` for arguments, Eq. 2, errors).

    Returns:
        weight [B, Q, k] float32 (float64 for float64 keys), descending, and index [B, Q, k] int64
        into the N tokens of all segments, with k = min(top_k, N); with ``return_usage`` also
        usage [B, N].

    Where fewer than k tokens have a finite similarity, the slots left over repeat the best token
    with weight 0.
    Differentiable in nothing: weights are for looking, testing and several readouts.
    """
    memory, queries = checks.read(mk, ms, None, qk, qe, with_values=False)
    checks.top_k(top_k)
    checks.hint(hint, queries.qk, memory.tokens)
    run = _kernel("affinity_topk", (*memory.tensors, *queries), backend, top_k, hint)
    with full_precision(qk), torch.no_grad():
        weight, index, usage = run(memory, queries, top_k, return_usage)
    weight = weight.detach()  # of a tangent, too
    return (weight, index) if usage is None else (weight, index, usage.detach())


def readout_topk(
    mv: Segments, weight: Tensor, index: Tensor, *, scale: Segments | None = None, backend: str = "auto"
) -> Tensor:
    """Eq. 1 over selected tokens:

        readout[b, o, c, q] = sum_j weight[b, q, j] * mv[b, o, c, index[b, q, j]]

    Args:
        mv: values [B, O, CV, N], or a list of segments; with ``scale`` int8 or float8_e4m3fn.
        weight, index: [B, Q, k] as :func:`affinity_topk` returns them.
        scale: float32 [B, O, G, N] (a list if mv is one): values are mv * scale, with one scale for
            each of G groups of ceil(CV / G) channels. Nothing but the rows read is widened.

    Returns:
        readout [B, O, CV, Q] in mv's dtype, differentiable in mv and weight; with ``scale``
        float32.

    Raises IndexError for an index outside 0 .. N - 1; on a GPU or under torch.compile such an index
    fails where it is used, as PyTorch's own indexing does.
    """
    if scale is not None:
        codes, scales = checks.scaled_affinity(mv, scale, weight, index)
        run = _kernel("readout_topk_scaled", (weight,), backend)
        with full_precision(weight):
            return run(codes, scales, weight, index)
    values = checks.affinity(mv, weight, index)
    run = _kernel("readout_topk", (weight, *values), backend)
    with full_precision(weight):
        return run(values, weight, index)


def similarity(mk: Segments, ms: Segments | None, qk: Tensor, qe: Tensor | None, *, backend: str = "auto") -> Tensor:
    """S of Eq. 2 (see :func:`memory_read`), [B, N, Q] float32 (float64 for float64 keys).

    For looking and testing: it is the matrix that every other function avoids. Differentiable.
    """
    memory, queries = checks.read(mk, ms, None, qk, qe, with_values=False)
    run = _kernel("similarity", (*memory.tensors, *queries), backend)
    with full_precision(qk):
        return run(memory, queries)


def select_prototypes(usage: Tensor, num_prototypes: int, *, backend: str = "auto") -> Tensor:
    """Prototype selection (Sec. 2.3): usage [B, N] -> index [B, P] int64 of the P most used.

    By usage, descending; of equal usage the lower index first.
    Raises ValueError unless 0 <= P <= N.
    """
    checks.usage(usage, num_prototypes, "num_prototypes")
    return _kernel("select_prototypes", (usage,), backend)(usage.detach(), num_prototypes)


def consolidate(
    mk: Segments,
    ms: Segments | None,
    me: Segments | None,
    mv: Segments,
    usage: Tensor,
    num_prototypes: int,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory consolidation of N candidates into P prototypes (Sec. 2.3).

    The P most used are selected, then potentiated (Eq. 3).

    Args:
        mk, ms, me, mv: the candidates' keys [B, CK, N], shrinkage [B, 1, N] or None,
            selection [B, CK, N] or None, and values [B, O, CV, N]; or equally long lists of
            segments [..., N_i], read as one memory.
        usage: [B, N], normalised by the time each candidate was in memory.
        num_prototypes: P, 0 <= P <= N.

    Returns:
        pk [B, CK, P], the chosen candidates' keys, most used first; ps [B, 1, P] float32 and
        pv [B, O, CV, P], shrinkage and values of all candidates averaged with the softmax of their
        similarity to each prototype.
    """
    memory, selection = checks.consolidation(mk, ms, me, mv, usage, num_prototypes)
    run = _kernel("consolidate", (*memory.tensors, *(selection or ()), usage.detach()), backend)
    with full_precision(usage):
        return run(memory, selection, usage.detach(), num_prototypes)


def evict_lfu(usage: Tensor, keep: int, *, backend: str = "auto") -> Tensor:
    """Least-frequently-used eviction (Sec. 2.3): usage [B, N] -> index [B, keep] int64.

    The indices of the survivors, ascending. Exactly ``keep`` survive; of equal usage the older
    (lower index) goes first.
    Raises ValueError unless 0 <= keep <= N.
    """
    checks.usage(usage, keep, "keep")
    return _kernel("evict_lfu", (usage,), backend)(usage.detach(), keep)


def explain(function: Callable[..., Any] | str, *args: Any, backend: str = "auto", **kwargs: Any) -> Explanation:
    """Which backend a call would use, and why each other one would not; ``print`` the result.

    ``explain(xmemk.memory_read, mk, ms, mv, qk, qe, top_k=30)``: the call's function (or its name)
    and its arguments, of which only devices, dtypes, CK, top_k and the need for gradients matter.
    Nothing is computed.
    """
    op = function if isinstance(function, str) else getattr(function, "__name__", "")
    if op not in backends.OPS:
        raise ValueError(f"function: wanted one of {', '.join(backends.OPS)}, got {function!r}")
    arguments = (*args, *kwargs.values())
    flat = (t for argument in arguments for t in (argument if isinstance(argument, (list, tuple)) else [argument]))
    tensors = [t for t in flat if isinstance(t, Tensor)]
    if not tensors:
        raise ValueError(f"explain: wanted {op}'s arguments, with at least one tensor")
    if op == "readout_topk" and kwargs.get("scale") is not None:
        op = "readout_topk_scaled"
        tensors = [t for t in tensors if t.dim() == 3]  # weight and index: values and scale decide nothing
    if op == "consolidate":  # usage, the only argument of two dimensions, is not differentiated
        tensors = [t.detach() if t.dim() == 2 else t for t in tensors]
    # Indices decide nothing either.
    call = _call(op, [t for t in tensors if t.is_floating_point()] or tensors, kwargs.get("top_k"))
    return backends.explain(call, backend)


def _kernel(
    op: str, tensors: Sequence[Tensor | None], backend: str, top_k: int | None = None, hint: Tensor | None = None
) -> Callable[..., Any]:
    """What runs this call: a row of the table of backends."""
    call = _call(op, [t for t in tensors if t is not None], top_k)
    row = backends.TABLE[op][backends.choose(call, backend)]
    differentiated = call.gradient or call.transform
    run = row.run_with_gradient if differentiated and row.run_with_gradient is not None else row.run
    return partial(run, hint=hint) if hint is not None and row.takes_hint else run


_WITH_KEYS = ("memory_read", "affinity_topk", "consolidate")  # whose first tensor is [B, CK, N]


def _call(op: str, tensors: Sequence[Tensor], top_k: int | None = None) -> Call:
    first = tensors[0]
    device = first.device
    double = any(t.dtype == torch.float64 for t in tensors)
    return Call(
        op,
        device.type,
        op in backends.DIFFERENTIABLE and torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
        torch.float64 if double else first.dtype,
        top_k,
        first.shape[1] if op in _WITH_KEYS else 0,
        device.index,
        transformed(tensors),
    )
