"""xmemk.validate: passes here, and fails when a backend is wrong."""

import pytest
import torch

from xmemk import api, validate
from xmemk.backends import BACKENDS, OPS
from xmemk.operators import native

SMALL = (validate.Shape(41, 9, objects=2, batch=2, value_channels=5, key_channels=8),)


@pytest.fixture(scope="module")
def rows():
    return list(validate.validate(SMALL))


def test_everything_passes(rows):
    assert [row for row in rows if not row.passed] == []
    assert all(row.checks > 0 or row.unavailable for row in rows)


def test_every_op_and_backend_is_named(rows):
    assert {(row.op, row.backend) for row in rows} == {(op, backend) for op in OPS for backend in BACKENDS}
    assert {row.dtype for row in rows if row.backend == "torch"} == {"float32", "float16", "bfloat16", "float64"}
    assert "needs cuda" in next(row for row in rows if row.backend == "triton").unavailable


def test_one_backend_alone():
    assert {row.backend for row in validate.validate(SMALL, only="torch")} == {"torch"}


def test_a_backend_that_is_not_built_is_a_row_with_its_reason(monkeypatch):
    monkeypatch.setattr(native, "_native_error", "the C++ extension is not built")
    rows = [row for row in validate.validate(SMALL, only="cpu") if row.op == "evict_lfu"]
    assert [row.unavailable[:30] for row in rows] == ["the C++ extension is not built"]


@pytest.mark.parametrize(
    ("op", "sabotage"),
    [
        ("memory_read", lambda read: lambda mk, ms, mv, qk, qe, **o: read(mk, None, mv, qk, qe, **o)),
        ("affinity_topk", lambda f: lambda *a, top_k, **o: f(*a, top_k=max(1, top_k - 1), **o)),
        ("readout_topk", lambda f: lambda mv, w, i, **o: f(mv, w, i.flip(2), **o)),
        ("similarity", lambda f: lambda *a, **o: 1.001 * f(*a, **o)),
        ("select_prototypes", lambda f: lambda u, p, **o: f(u, p, **o).flip(1)),
        ("consolidate", lambda f: lambda mk, ms, me, mv, u, p, **o: f(mk, ms, None, mv, u, p, **o)),
        ("evict_lfu", lambda f: lambda u, keep, **o: f(u.flip(1), keep, **o)),
    ],
)
def test_a_wrong_backend_fails(monkeypatch, op, sabotage):
    monkeypatch.setattr(api, op, sabotage(getattr(api, op)))
    rows = [row for row in validate.validate(SMALL, only="torch") if row.op == op]
    assert rows
    assert not any(row.passed for row in rows if row.dtype == "float32")
    failed = next(row for row in rows if row.failures)
    assert "N=41" in failed.failures[0]


def test_a_backend_that_raises_is_a_failure_not_an_end(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(api, "similarity", broken)
    rows = list(validate.validate(SMALL, only="torch"))
    bad = [row for row in rows if not row.passed]
    assert {row.op for row in bad} == {"similarity"}
    assert "RuntimeError: no such instruction" in bad[0].failures[0]


def test_rows_are_plain_data(rows):
    row = rows[-1].as_dict()
    assert row["passed"] is True
    assert all(isinstance(v, (str, int, float, bool, list, type(None))) for v in row.values())
    assert torch.tensor(rows[-1].worst) <= 1
