"""How a peer's result is judged before it is timed, against float64: exact, rounded, or wrong.

Exact is within what xmemk.testing allows. Rounded is off by no more than 16-bit products explain, where the inputs are
16-bit or the peer multiplies so; its relative error is shown beside its time. Anything else is wrong, and not timed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from xmemk.benchmarks.peers.catalogue import CHECKED_QUERIES, readout_gradient
from xmemk.benchmarks.peers.workloads import READS, UPKEEP, OpCase

from xmemk import reference
from xmemk.testing import Comparison, Inputs, compare_consolidate, compare_read

# The most that 16-bit products explain: the released code under autocast, whose terms of Eq. 2 cancel in float16.
WORST_ROUNDING = 0.1


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
        return compared if missing <= 1e-5 else Comparison("sum of usage", missing, missing / 1e-5)
    if case.op == "consolidate":
        return compare_consolidate(x, case.workload.prototypes, *result)
    if case.op in UPKEEP:
        return _compare_choice(case, result)
    return _compare_gradients(case, result)


def relative_error(case: OpCase, result: Any) -> float:
    """Of the readout, the prototypes' values or the gradients of the queries, in the Frobenius norm; infinite for
    prototypes or survivors other than the right ones.
    """
    x = case.inputs
    if case.op in READS:
        wanted = [reference.memory_read(*_some(x).double().read, top_k=case.top_k)]
        got = [result[0][..., checked_queries(x)]]
    elif case.op == "consolidate":
        exact = x.double()
        arguments = (exact.mk, exact.ms, exact.me, exact.mv, exact.usage)
        wanted, got = list(reference.consolidate(*arguments, case.workload.prototypes)), list(result)
    elif case.op in UPKEEP:
        return 0.0 if _compare_choice(case, result).passed else math.inf
    else:
        wanted, got = _wanted_gradients(case), [g[..., checked_queries(x)] for g in result[-2:]]
    if any(g.shape != w.shape for g, w in zip(got, wanted)):
        return math.inf
    return max(float((g.double() - w).norm() / w.norm()) for g, w in zip(got, wanted))


def status(compared: Comparison | None, error: float | None, rounded: bool) -> str:
    """One of exact, rounded, WRONG, or nothing for a peer that has no result. ``error`` is the relative one;
    ``rounded`` says that there are 16-bit products in it.
    """
    if compared is None:
        return ""
    if compared.passed:
        return "exact"
    return "rounded" if rounded and error is not None and error <= WORST_ROUNDING else "WRONG"


def checked_queries(x: Inputs) -> Tensor:
    """Which queries are compared with float64."""
    return torch.linspace(0, x.qk.shape[2] - 1, min(CHECKED_QUERIES, x.qk.shape[2]), device=x.qk.device).long().unique()


def _some(x: Inputs) -> Inputs:
    picked = checked_queries(x)
    return Inputs(x.mk, x.ms, x.mv, x.qk[..., picked], None if x.qe is None else x.qe[..., picked], x.me, x.usage)


def _compare_choice(case: OpCase, index: Tensor) -> Comparison:
    """The same usage was chosen; which of equals, other implementations leave open."""
    usage, p = case.usage.cpu(), case.workload.prototypes
    wanted = reference.select_prototypes(usage, p)
    if case.op == "evict_lfu":
        wanted = reference.evict_lfu(usage, usage.shape[1] - p)
    got = usage.gather(1, index.cpu()).sort(1).values
    same = torch.equal(got, usage.gather(1, wanted).sort(1).values)
    return Comparison("choice", 0.0 if same else 1.0, 0.0 if same else float("inf"))


def _wanted_gradients(case: OpCase) -> list[Tensor]:
    """Of qk and qe, in float64, on the checked queries."""
    exact = _some(case.inputs.double())
    read = [None if t is None else t.detach().requires_grad_() for t in exact.read]
    readout = reference.memory_read(*read, top_k=case.top_k)  # type: ignore[arg-type]
    given = readout_gradient(case.inputs)[..., checked_queries(case.inputs)].double()
    return list(torch.autograd.grad(readout, [t for t in read[-2:] if t is not None], given))


def _compare_gradients(case: OpCase, gradients: tuple[Tensor, ...]) -> Comparison:
    """Query gradients against float64's on some queries: memory gradients add up all queries, and are left to the
    tests.

    Allowed is 1e-4 of the largest, which is ten times what the tidy formulation is off by.
    """
    picked = checked_queries(case.inputs)
    compared = []
    for name, got, want in zip(("gradient of qk", "gradient of qe"), gradients[-2:], _wanted_gradients(case)):
        error = float((got[..., picked].double() - want).abs().amax())
        compared.append(Comparison(name, error, error / (1e-4 * float(want.abs().amax()))))
    return max(compared, key=lambda c: c.share)
