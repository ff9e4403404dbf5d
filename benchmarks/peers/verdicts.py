"""How a peer's result is judged before it is timed, against float64: exact, rounded, or wrong.

Exact is within what xmemk.testing allows. Rounded is off by no more than 16-bit products explain,
where the inputs are 16-bit or the peer multiplies so; its relative error is shown beside its time.
Anything else is wrong, and not timed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from xmemk.benchmarks.peers.catalogue import CHECKED_QUERIES, call_of_ours, readout_gradient
from xmemk.benchmarks.peers.workloads import READS, UPKEEP, OpCase

from xmemk import reference
from xmemk.testing import Comparison, Inputs, compare_consolidate, compare_read

# The most that 16-bit products explain: the released code under autocast, whose terms of Eq. 2
# cancel in float16.
WORST_ROUNDING = 0.1
USAGE_TOLERANCE = 1e-5  # of the sum of usage, relative to the number of queries
GRADIENT_TOLERANCE = 1e-4  # of the largest gradient: ten times what the tidy formulation is off by


def verdict(case: OpCase, result: Any) -> Comparison | None:
    """How far a peer's result is from float64; None for one that has no result of its own."""
    if result is None:
        return None
    x = case.inputs
    if case.op in READS:
        readout, usage = result
        compared = compare_read(_some(x), readout[..., checked_queries(x)], top_k=case.top_k)
        if usage is None:
            return compared
        missing = abs(float(usage.double().sum()) - x.qk.shape[2]) / x.qk.shape[2]
        wrong = Comparison("sum of usage", missing, missing / USAGE_TOLERANCE)
        return compared if missing <= USAGE_TOLERANCE else wrong
    if case.op == "consolidate":
        return compare_consolidate(x, case.workload.prototypes, *result)
    return _compare_choice(case, result) if case.op in UPKEEP else _compare_gradients(case, result)


def relative_error(case: OpCase, result: Any) -> float:
    """Of the readout, the prototypes or the gradients of the queries, in the Frobenius norm.

    It is infinite for prototypes or survivors other than the right ones.
    """
    x = case.inputs
    if case.op in UPKEEP:
        return 0.0 if _compare_choice(case, result).passed else math.inf
    if case.op in READS:
        exact: Any = [reference.memory_read(*_some(x).double().read, top_k=case.top_k)]
        result = [result[0][..., checked_queries(x)]]
    elif case.op == "consolidate":
        y = x.double()
        exact = reference.consolidate(y.mk, y.ms, y.me, y.mv, y.usage, case.workload.prototypes)
    else:
        exact, result = _exact_gradients(case), [g[..., checked_queries(x)] for g in result[-2:]]
    if any(r.shape != e.shape for r, e in zip(result, exact)):
        return math.inf
    return max(float((r.double() - e).norm() / e.norm()) for r, e in zip(result, exact))


def status(compared: Comparison | None, error: float | None, rounded: bool) -> str:
    """One of exact, rounded, WRONG, or nothing for a peer that has no result.

    ``error`` is the relative one; ``rounded`` says that there are 16-bit products in it.
    """
    if compared is None or compared.passed:
        return "exact" if compared else ""
    return "rounded" if rounded and error is not None and error <= WORST_ROUNDING else "WRONG"


def checked_queries(x: Inputs) -> Tensor:
    """Which queries are compared with float64."""
    return torch.linspace(0, x.qk.shape[2] - 1, min(CHECKED_QUERIES, x.qk.shape[2]), device=x.qk.device).long().unique()


def _some(x: Inputs) -> Inputs:
    picked = checked_queries(x)
    return Inputs(x.mk, x.ms, x.mv, x.qk[..., picked], None if x.qe is None else x.qe[..., picked], x.me, x.usage)


def _compare_choice(case: OpCase, index: Tensor) -> Comparison:
    """The same usage was chosen; which of equals, other implementations leave open."""
    op, (usage, count), _ = call_of_ours(case)
    usage = usage.cpu()
    chosen = (usage.gather(1, i).sort(1).values for i in (index.cpu(), getattr(reference, op)(usage, count)))
    same = torch.equal(*chosen)
    return Comparison("choice", 0.0 if same else 1.0, 0.0 if same else float("inf"))


def _exact_gradients(case: OpCase) -> list[Tensor]:
    """Of qk and qe, in float64, on the checked queries."""
    read: list[Any] = [None if t is None else t.detach().requires_grad_() for t in _some(case.inputs.double()).read]
    readout = reference.memory_read(*read, top_k=case.top_k)
    d_readout = readout_gradient(case.inputs)[..., checked_queries(case.inputs)].double()
    return list(torch.autograd.grad(readout, [t for t in read[-2:] if t is not None], d_readout))


def _compare_gradients(case: OpCase, gradients: tuple[Tensor, ...]) -> Comparison:
    """Query gradients against float64's on some queries.

    Memory gradients add up all queries, and are left to the tests.
    """
    picked = checked_queries(case.inputs)
    compared = []
    for name, got, exact in zip(("gradient of qk", "gradient of qe"), gradients[-2:], _exact_gradients(case)):
        error = float((got[..., picked].double() - exact).abs().amax())
        compared.append(Comparison(name, error, error / (GRADIENT_TOLERANCE * float(exact.abs().amax()))))
    return max(compared, key=lambda c: c.share)
