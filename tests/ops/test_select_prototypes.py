"""select_prototypes in C++ against the oracle: equal indices, so ties, NaN and -0 count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from usage_rows import DTYPES, KINDS, row

import xmemk
from xmemk import reference

pytest.importorskip("xmemk._C", reason="the C++ extension xmemk._C is not built", exc_type=ImportError)


def select(usage, num_prototypes):
    return xmemk.select_prototypes(usage, num_prototypes, backend="cpu")


def check(usage, num_prototypes):
    index = select(usage, num_prototypes)
    assert index.dtype == torch.int64
    assert index.is_contiguous()
    assert torch.equal(index, reference.select_prototypes(usage, num_prototypes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_oracle(kind, dtype):
    for n in (1, 2, 31, 33, 512, 513, 1023, 10007):
        usage = row(kind, n).to(dtype)[None]
        for p in {0, 1, min(n, 128), n // 2, n - 1, n}:
            check(usage, p)


@pytest.mark.parametrize("kind", KINDS[::3])
@pytest.mark.parametrize("num_threads", [2, 3])
def test_one_row_cut_among_threads(kind, num_threads, threads):
    threads(num_threads)
    usage = row(kind, 800_003)[None]  # enough for three parts
    for p in (128, 5000):
        check(usage, p)


@pytest.mark.parametrize(("n", "step"), [(10_007, 16), (800_003, 195)])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_usage_that_misleads_a_sample(n, step, num_threads, threads):
    """What evenly spaced tokens have lets too few, or nearly all, of the others pass."""
    threads(num_threads)
    usage = torch.rand(1, n, generator=torch.Generator().manual_seed(0))
    for shift in (1, -1):
        usage[:, ::step] += shift
        check(usage, 128)
        check(usage, n // 4)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_batches(num_threads, threads):
    threads(num_threads)
    for b, n in ((0, 7), (1, 0), (3, 0), (2, 5), (7, 1000), (3, 40_000)):
        usage = torch.rand(b, n, generator=torch.Generator().manual_seed(b)).mul(50).floor()
        for p in {0, min(n, 128), n if n < 10_000 else 1}:
            check(usage, p)


def test_any_strides():
    u = torch.stack([row(kind, 3001) for kind in KINDS])
    for usage in (
        u[:, ::3],
        u[::2, 5:],
        u.t().contiguous().t(),  # token stride is not 1
        u[:1].expand(4, -1),
        u[:, 7:8].expand(-1, 300),  # token stride 0: all equal
        u[:, 1:2],
    ):
        for p in {1, min(usage.shape[1], 128), usage.shape[1]}:
            check(usage, p)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, math.nan, math.inf]), min_size=1, max_size=90), st.data())
def test_many_ties(values, data):
    check(torch.tensor([values]), data.draw(st.integers(0, len(values))))


def test_order_does_not_depend_on_flushing_denormals():
    usage = torch.randperm(2000).to(torch.int32).view(torch.float32)[None]  # zero and denormals, all different
    expected = reference.select_prototypes(usage.view(torch.int32), 100)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        index = select(usage, 100)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(index, expected)


def test_ten_million_tokens():
    n = 10_000_000
    usage = torch.zeros(1, n)
    used = torch.tensor([9_999_999, 5_000_000, 0, 7_654_321])
    usage[0, used] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert select(usage, 7).tolist() == [[*used.tolist(), 1, 2, 3]]
    usage = torch.rand(1, n, generator=torch.Generator().manual_seed(0))
    index = select(usage, 128)[0]
    value = usage[0, index]
    assert torch.equal(value, usage.topk(128).values[0])
    assert ((value[:-1] > value[1:]) | (index[:-1] < index[1:])).all()


def test_operator():
    torch.library.opcheck(torch.ops.xmemk.select_prototypes.default, (torch.rand(2, 300), 5))


@pytest.mark.parametrize(
    ("usage", "p", "error", "match"),
    [
        (torch.rand(2, 5), 6, ValueError, r"num_prototypes: wanted 0 to N = 5 .*got 6"),
        (torch.rand(2, 5), -1, ValueError, r"num_prototypes: wanted 0 to N = 5 .*got -1"),
        (torch.rand(2, 0), 1, ValueError, r"num_prototypes: wanted 0 to N = 0 .*got 1"),
        (torch.rand(5), 1, ValueError, r"usage: wanted \[B, N\], got \[5\]"),
        (torch.zeros(2, 5, dtype=torch.int64), 1, TypeError, r"usage: wanted float32.*got .*(int64|Long)"),
    ],
)
def test_errors(usage, p, error, match):
    with pytest.raises(error, match=match):
        torch.ops.xmemk.select_prototypes(usage, p)
    with pytest.raises(error, match=match):
        select(usage, p)
