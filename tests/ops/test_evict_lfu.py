"""evict_lfu in C++ against the oracle: equal indices, so ties, NaN and signed zeros count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from usage_rows import DTYPES, KINDS, row

import xmemk
from xmemk import reference

pytest.importorskip("xmemk._C", reason="the C++ extension xmemk._C is not built", exc_type=ImportError)


def evict(usage, keep):
    return xmemk.evict_lfu(usage, keep, backend="cpu")


def check(usage, keep):
    index = evict(usage, keep)
    assert index.dtype == torch.int64
    assert index.is_contiguous()
    assert torch.equal(index, reference.evict_lfu(usage, keep))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_oracle(kind, dtype):
    for n in (1, 2, 31, 33, 512, 513, 1023, 10007):
        usage = row(kind, n).to(dtype)[None]
        for keep in {0, 1, max(0, n - 128), n // 2, n - 1, n}:
            check(usage, keep)


@pytest.mark.parametrize("kind", KINDS[::3])
@pytest.mark.parametrize("num_threads", [2, 3])
def test_one_row_cut_among_threads(kind, num_threads, threads):
    threads(num_threads)
    usage = row(kind, 800_003)[None]  # enough for three parts
    for keep in (400_000, 799_875):
        check(usage, keep)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_batches(num_threads, threads):
    threads(num_threads)
    for b, n in ((0, 7), (1, 0), (3, 0), (2, 5), (7, 1000), (3, 40_000)):
        usage = torch.rand(b, n, generator=torch.Generator().manual_seed(b)).mul(50).floor()
        for keep in {0, n // 3, n}:
            check(usage, keep)


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
        for keep in {1, usage.shape[1] // 2, usage.shape[1]}:
            check(usage, keep)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, math.nan, math.inf]), min_size=1, max_size=90), st.data())
def test_many_ties(values, data):
    check(torch.tensor([values]), data.draw(st.integers(0, len(values))))


def test_order_does_not_depend_on_flushing_denormals():
    usage = torch.randperm(2000).to(torch.int32).view(torch.float32)[None]  # zero and denormals, all different
    expected = reference.evict_lfu(usage.view(torch.int32), 100)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        index = evict(usage, 100)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(index, expected)


def test_ten_million_tokens():
    n = 10_000_000
    usage = torch.ones(1, n)
    usage[0, [3, 5_000_000, 9_999_999]] = 0.0
    index = evict(usage, n - 5)[0]  # the three zeros, then the two oldest of the rest
    expected = torch.ones(n, dtype=torch.bool)
    expected[[0, 1, 3, 5_000_000, 9_999_999]] = False
    assert torch.equal(index, expected.nonzero()[:, 0])


def test_operator():
    torch.library.opcheck(torch.ops.xmemk.evict_lfu.default, (torch.rand(2, 300), 250))


@pytest.mark.parametrize(
    ("usage", "keep", "error", "match"),
    [
        (torch.rand(2, 5), 6, ValueError, r"keep: wanted 0 to N = 5 .*got 6"),
        (torch.rand(2, 5), -1, ValueError, r"keep: wanted 0 to N = 5 .*got -1"),
        (torch.rand(2, 0), 1, ValueError, r"keep: wanted 0 to N = 0 .*got 1"),
        (torch.rand(5), 1, ValueError, r"usage: wanted \[B, N\], got \[5\]"),
        (torch.zeros(2, 5, dtype=torch.int64), 1, TypeError, r"usage: wanted float32.*got .*(int64|Long)"),
    ],
)
def test_errors(usage, keep, error, match):
    with pytest.raises(error, match=match):
        torch.ops.xmemk.evict_lfu(usage, keep)
    with pytest.raises(error, match=match):
        evict(usage, keep)
