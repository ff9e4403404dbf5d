"""Random adversarial calls of every function against the oracle; and a wrong result is seen."""

import pytest
import torch
from extension import CPU_BACKENDS
from hypothesis import HealthCheck, given, settings
from op_inputs import cases

from xmemk import api, fuzz
from xmemk.backends import TABLE

quick = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_numbered_calls(backend):
    reports = list(fuzz.run(60, backend))
    assert [(r.number, r.op, r.faults, r.case) for r in reports if r.faults] == []
    assert {r.op for r in reports} >= {"memory_read", "memory_read backward", "affinity_topk", "readout_topk"}


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("op", fuzz.OPS)
@quick
@given(case=cases())
def test_drawn_calls(op, backend, case):
    if backend in TABLE[op.removesuffix(" backward")]:
        assert fuzz.differences(op, case, backend) == []


def test_a_case_is_made_again_from_its_number():
    a, b = fuzz.draw(1234), fuzz.draw(1234)
    assert a == b
    for x, y in zip(fuzz.arguments(a).read, fuzz.arguments(b).read):
        assert x is y is None or torch.equal(x.nan_to_num(), y.nan_to_num())


@pytest.mark.parametrize(
    ("op", "sabotage"),
    [
        ("memory_read", lambda f: lambda mk, ms, mv, qk, qe, **o: f(mk, None, mv, qk, qe, **o)),
        ("memory_read", lambda f: lambda *a, **o: tuple(r.nan_to_num(0.0) for r in f(*a, **o))),
        ("memory_read", lambda f: lambda *a, **o: (f(*a, **o)[0], 1.001 * f(*a, **o)[1])),
        ("affinity_topk", lambda f: lambda *a, **o: (1.00001 * f(*a, **o)[0], *f(*a, **o)[1:])),
        ("affinity_topk", lambda f: lambda *a, **o: (f(*a, **o)[0], f(*a, **o)[1].flip(2), f(*a, **o)[2])),
        ("readout_topk", lambda f: lambda mv, w, i, **o: f(mv, w, i, **o).nan_to_num(1.0) * 1.0001),
        ("similarity", lambda f: lambda *a, **o: f(*a, **o) * 1.001),
        ("select_prototypes", lambda f: lambda u, p, **o: f(u, p, **o).flip(1)),
        ("consolidate", lambda f: lambda mk, ms, me, mv, u, p, **o: f(mk, ms, None, mv, u, p, **o)),
        ("evict_lfu", lambda f: lambda u, keep, **o: f(u.flip(1), keep, **o)),
    ],
)
def test_a_wrong_result_is_seen(monkeypatch, op, sabotage):
    monkeypatch.setattr(api, op, sabotage(getattr(api, op)))
    dtypes = ("float32", "float16", "bfloat16")
    assert any(fuzz.differences(op, fuzz.draw(number, dtypes), "torch") for number in range(60))


def test_a_call_that_raises_is_a_difference(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(api, "similarity", broken)
    reports = [r for r in fuzz.run(30, "torch") if r.op == "similarity"]
    assert reports
    assert all(r.faults == ["RuntimeError: no such instruction"] for r in reports)


def test_a_backend_that_cannot_run_is_said():
    with pytest.raises(ValueError, match="needs cuda tensors"):
        next(fuzz.run(1, "triton"))
