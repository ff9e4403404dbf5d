"""Whether a backend's results of a case are the oracle's.

The comparators of :mod:`xmemk.testing` judge what can be read: tokens whose key and shrinkage are
finite, queries that are finite. For the rest the rules of :mod:`xmemk.api` are checked as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import api, reference
from ..testing import (
    Comparison,
    Inputs,
    compare_close,
    compare_consolidate,
    compare_read,
    compare_topk,
    compare_usage,
    exact_scores,
    open_choices,
    score_tolerance,
)
from .cases import Case, arguments, cut
from .gradients import check_gradients, gradients

Faults = Iterator[str]

_SQUARES = (1, 4, 16, 64)  # key channels whose root is exact
_PAIRS_OF_GRADIENTS = 200_000  # N * Q * CK at most, since their judge holds as many numbers several times


def differences(op: str, case: Case, backend: str) -> list[str]:
    """What is wrong with the op's results, in a sentence each; nothing where they are right."""
    return list(_JUDGES[op](case, arguments(case), backend))


class _Readable(NamedTuple):
    """One batch element without what cannot be read, and which tokens and queries are left."""

    b: int
    inputs: Inputs
    tokens: Tensor  # [N] bool
    queries: Tensor  # [Q] bool

    @property
    def n(self) -> int:
        return self.inputs.mk.shape[2]


def _elements(x: Inputs) -> Iterator[_Readable]:
    for b in range(x.mk.shape[0]):
        tokens = x.mk[b].isfinite().all(0)
        tokens = tokens if x.ms is None else tokens & x.ms[b, 0].isfinite()
        queries = x.qk[b].isfinite().all(0)
        queries = queries if x.qe is None else queries & x.qe[b].isfinite().all(0)
        queries = queries & tokens.any()
        one = slice(b, b + 1)
        left = Inputs(
            mk=x.mk[one][..., tokens],
            ms=None if x.ms is None else x.ms[one][..., tokens],
            mv=x.mv[one][..., tokens],
            qk=x.qk[one][..., queries],
            qe=None if x.qe is None else x.qe[one][..., queries],
            me=x.me[one][..., tokens],
            usage=x.usage[one, tokens],
        )
        yield _Readable(b, left, tokens, queries)


def _memory_read(case: Case, x: Inputs, backend: str) -> Faults:
    memory = [None if t is None else cut(t, case) for t in (x.mk, x.ms, x.mv)]
    readout, usage = api.memory_read(
        memory[0], memory[1], memory[2], x.qk, x.qe, top_k=case.top_k, return_usage=True, backend=backend  # type: ignore
    )  # fmt: skip
    if readout.shape != (case.batch, case.objects, case.value_channels, case.q) or readout.dtype != x.mv.dtype:
        yield f"readout {list(readout.shape)} {readout.dtype}"
        return
    for part in _elements(x):
        yield from _usage(part, usage[part.b], case.top_k)
        if not readout[part.b][..., ~part.queries].isnan().all():
            yield "a query without any finite score reads something"
        if part.queries.any():
            yield from _values(case, part, x.mv[part.b], readout[part.b])


def _usage(part: _Readable, usage: Tensor, top_k: int | None) -> Faults:
    if (usage[~part.tokens] != 0).any():
        yield "a token that cannot be read has usage"
    if not part.queries.any():
        if (usage != 0).any():
            yield "usage without a query that reads"
        return
    yield from _wrong(compare_usage(part.inputs, usage[part.tokens].unsqueeze(0), top_k))


def _values(case: Case, part: _Readable, mv: Tensor, readout: Tensor) -> Faults:
    """mv [O, CV, N], readout [O, CV, Q] of one batch element."""
    x = part.inputs
    bad = ~x.mv[0].isfinite()
    everywhere = (~mv.isfinite()).any(2, keepdim=True)  # also of a token of weight 0, in a dense read
    readout = readout[..., part.queries]
    if case.top_k is None or case.top_k >= case.n:
        touched = everywhere.expand(readout.shape)
        surely = bad.any(2, keepdim=True).expand(readout.shape)
    else:
        possible, certain = _selected(x, case.top_k)
        touched, surely = ((bad.double() @ chosen[0].double()) > 0 for chosen in (possible, certain))
    if readout[surely].isfinite().any():
        yield "a value that is not finite is selected and does not show"
    finite = Inputs(x.mk, x.ms, x.mv.where(x.mv.isfinite(), 0.0), x.qk, x.qe, x.me, x.usage)
    score = exact_scores(finite)
    if case.top_k is not None and case.top_k < part.n:
        score = score.where(open_choices(score, torch.zeros_like(score), case.top_k)[0], -math.inf)
    expected = finite.mv[0].double() @ score[0].softmax(0)
    judged = torch.where(touched, expected.to(readout.dtype), readout)
    yield from _wrong(compare_read(finite, judged.unsqueeze(0), top_k=case.top_k))


def _selected(x: Inputs, top_k: int) -> tuple[Tensor, Tensor]:
    """[1, N, Q]: tokens that may be among the k best, as rounding falls, and that must be."""
    score, tolerance = exact_scores(x), score_tolerance(x)
    if top_k >= score.shape[1]:
        everything = torch.ones_like(score, dtype=torch.bool)
        return everything, everything
    chosen, exchangeable = open_choices(score, tolerance, top_k)
    return chosen | exchangeable, chosen & ~exchangeable


def _affinity_topk(case: Case, x: Inputs, backend: str) -> Faults:
    top_k = case.top_k or case.n
    memory = [None if t is None else cut(t, case) for t in (x.mk, x.ms)]
    weight, index, usage = api.affinity_topk(
        memory[0], memory[1], x.qk, x.qe, top_k=top_k, return_usage=True, backend=backend  # type: ignore
    )  # fmt: skip
    k = min(top_k, case.n)
    if index.shape != (case.batch, case.q, k):
        yield f"index {list(index.shape)}"
        return
    total = weight.double().sum(2)
    if (total - 1).abs().gt(1e-6).any():  # NaN compares false
        yield f"weights sum to 1 within {float((total - 1).abs().nan_to_num(0.0).amax()):.1e} only"
    if (weight.diff(dim=2) > 0).any():
        yield "weights do not descend"
    for part in _elements(x):
        yield from _usage(part, usage[part.b], top_k)
        w, i = weight[part.b], index[part.b]
        if not w[~part.queries].isnan().all():
            yield "a query without any finite score has weights"
        if part.queries.any():
            yield from _choice(case, part, w[part.queries], i[part.queries], k)


def _choice(case: Case, part: _Readable, weight: Tensor, index: Tensor, k: int) -> Faults:
    """weight, index [Q, k] of one batch element, of queries that read."""
    kept = min(k, part.n)
    if (weight[:, kept:] != 0).any() or (index[:, kept:] != index[:, :1]).any():
        yield "a slot without a token is not the best token with weight 0"
    if not part.tokens[index].all():
        yield "a token that cannot be read is selected"
        return
    number = part.tokens.long().cumsum(0) - 1
    chosen = number[index[:, :kept]]
    score = exact_scores(part.inputs)[0].T
    order = score.sort(dim=1, descending=True, stable=True).indices
    if _scores_are_exact(case) and not torch.equal(chosen, order[:, :kept]):
        yield "of equal scores not the lowest index"
    # Scores that float32 does not hold are -inf: such a slot repeats the best, too.
    for row in (chosen.sort(1).values.diff(dim=1) == 0).any(1).nonzero().flatten().tolist():
        empty = (weight[row, :kept] == 0) & (chosen[row] == chosen[row, 0])
        others = order[row][~torch.isin(order[row], chosen[row][~empty])]
        chosen[row, empty] = others[: int(empty.sum())]
    yield from _wrong(compare_topk(part.inputs, weight[None, :, :kept], chosen.unsqueeze(0), kept))


def _scores_are_exact(case: Case) -> bool:
    kinds = case.keys in ("integers", "equal") and case.selection in ("none", "integers", "zeros")
    return kinds and case.shrinkage in ("none", "ones", "integers") and case.key_channels in _SQUARES


def _similarity(case: Case, x: Inputs, backend: str) -> Faults:
    memory = [None if t is None else cut(t, case) for t in (x.mk, x.ms)]
    score = api.similarity(memory[0], memory[1], x.qk, x.qe, backend=backend)  # type: ignore[arg-type]
    for part in _elements(x):
        if not part.queries.any():
            continue
        expected = exact_scores(part.inputs)
        got = score[part.b][part.tokens][:, part.queries].double().unsqueeze(0)
        largest = torch.finfo(score.dtype).max
        y = part.inputs
        distance = exact_scores(Inputs(y.mk, None, y.mv, y.qk, y.qe, y.me, y.usage))
        # What is near the end of the range may be beyond it.
        fits = expected.abs().maximum(distance.abs()) < largest / 1e3
        # A backend's central key may be any; far ones are as bad as none.
        apart = Inputs(-y.mk.abs(), y.ms, y.mv, y.qk.abs(), y.qe, y.me, y.usage)
        unit = math.sqrt(2 * case.key_channels + 2) * torch.finfo(score.dtype).eps
        room = 2 * score_tolerance(y) + unit * exact_scores(apart).abs() + 1e-6 * expected.abs() + 1e-30
        got, expected = (torch.where(fits, s / room, 0.0) for s in (got, expected))
        yield from _wrong(compare_close("similarity", got, expected, 1.0))


def _readout_topk(case: Case, x: Inputs, backend: str) -> Faults:
    g = torch.Generator().manual_seed(case.seed)
    k = case.top_k or 3
    weight = torch.rand(case.batch, case.q, k, generator=g)
    index = torch.randint(case.n, weight.shape, generator=g)
    readout = api.readout_topk(cut(x.mv, case), weight, index, backend=backend)
    finite = x.mv.where(x.mv.isfinite(), 0.0).double()
    expected, size, touched = (
        reference.readout_topk(v, weight.double(), index) for v in (finite, finite.abs(), (~x.mv.isfinite()).double())
    )
    unit = torch.finfo(torch.float64 if x.mv.dtype == torch.float64 else torch.float32).eps
    info = torch.finfo(readout.dtype)
    room = (8 + math.sqrt(k)) * unit * size + info.eps * expected.abs() + 1e-30 + info.smallest_normal
    if not torch.equal(touched > 0, ~readout.isfinite()):
        yield "a value that is not finite does not show where it is selected, or shows elsewhere"
    got = torch.where(touched > 0, expected, readout.double())
    yield from _wrong(compare_close("readout", got / room, expected / room, 1.0))


def _consolidate(case: Case, x: Inputs, backend: str) -> Faults:
    if case.not_finite:
        return
    ms = None if x.ms is None else cut(x.ms, case)
    count = min(case.n, case.seed % 7)
    memory = cut(x.mk, case), ms, cut(x.me, case), cut(x.mv, case)
    prototypes = api.consolidate(*memory, x.usage, count, backend=backend)
    yield from _wrong(compare_consolidate(x, count, *prototypes))


def _usage_of_case(case: Case, x: Inputs) -> Tensor:
    """With ties, zeros of both signs, and what is not finite."""
    g = torch.Generator().manual_seed(case.seed)
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0])[torch.randint(5, x.usage.shape, generator=g)]
    return torch.where(torch.rand(x.usage.shape, generator=g) < (case.seed % 4) / 10, special.to(x.usage), x.usage)


def _select_prototypes(case: Case, x: Inputs, backend: str) -> Faults:
    usage, count = _usage_of_case(case, x), case.seed % (case.n + 1)
    got = api.select_prototypes(usage, count, backend=backend)
    yield from _wrong(compare_close("index", got, reference.select_prototypes(usage, count), 0.0))


def _evict_lfu(case: Case, x: Inputs, backend: str) -> Faults:
    usage, count = _usage_of_case(case, x), case.seed % (case.n + 1)
    got = api.evict_lfu(usage, count, backend=backend)
    yield from _wrong(compare_close("index", got, reference.evict_lfu(usage, count), 0.0))


def _memory_read_backward(case: Case, x: Inputs, backend: str) -> Faults:
    sizes = (case.batch, case.objects, case.value_channels, case.q)
    extreme = case.not_finite or case.keys in ("huge", "outlier", "tiny") or case.values == "huge"
    if extreme or 0 in sizes or case.n * case.q * case.key_channels > _PAIRS_OF_GRADIENTS:
        return
    g = torch.Generator().manual_seed(case.seed)
    d_readout = torch.randn(sizes, generator=g).to(x.mv.dtype)
    d_usage = torch.randn(case.batch, case.n, generator=g).to(x.usage)

    def read(mk: Tensor, ms: Tensor | None, mv: Tensor, qk: Tensor, qe: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = [None if t is None else cut(t, case) for t in (mk, ms, mv)]
        return api.memory_read(
            parts[0], parts[1], parts[2], qk, qe, top_k=case.top_k, return_usage=True, backend=backend  # type: ignore
        )  # fmt: skip

    index = None
    if case.top_k is not None and case.top_k < case.n:
        index = api.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=case.top_k, backend=backend)[1]
    try:
        check_gradients(x, gradients(read, x, (d_readout, d_usage)), d_readout, d_usage, index)
    except AssertionError as error:
        # A read may decide otherwise than the affinity did where rounding leaves a choice open.
        decided = index is None or all(_is_decided(part.inputs, case.top_k) for part in _elements(x))
        if decided:
            yield str(error)


def _is_decided(x: Inputs, top_k: int | None) -> bool:
    possible, certain = _selected(x, top_k or x.mk.shape[2])
    return torch.equal(possible, certain)


def _wrong(comparison: Comparison) -> Faults:
    if not comparison.passed:
        yield str(comparison)


_JUDGES: dict[str, Callable[[Case, Inputs, str], Faults]] = {
    "memory_read": _memory_read,
    "memory_read backward": _memory_read_backward,
    "affinity_topk": _affinity_topk,
    "readout_topk": _readout_topk,
    "similarity": _similarity,
    "select_prototypes": _select_prototypes,
    "consolidate": _consolidate,
    "evict_lfu": _evict_lfu,
}
OPS = tuple(_JUDGES)
