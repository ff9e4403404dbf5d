"""The C++ memory read: what only it promises. Agreement with the oracle is tested in test_memory_read.py."""

import math
import sys
import time

import pytest
import torch
from vector_sets import vector_sets

import xmemk
from xmemk import ops, reference
from xmemk.measure.peak import Peak
from xmemk.testing import compare_close, compare_read, compare_topk, compare_usage, make_inputs

pytestmark = pytest.mark.skipif(ops.native_error() is not None, reason=f"xmemk._C: {ops.native_error()}")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("top_k", [None, 20, 300])
@pytest.mark.parametrize(("n", "q"), [(3000, 300), (5000, 3), (700, 1000), (40_000, 70)])
def test_bit_for_bit_the_same_for_any_number_of_threads(threads, dtype, top_k, n, q):
    x = make_inputs(n, q, objects=2, value_channels=32, dtype=dtype)
    results = []
    for count in (1, 2, 3, 8, 64):
        threads(count)
        results.append(xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="cpu"))
        if top_k:
            results[-1] += xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=top_k, backend="cpu")
    assert all(equal(results[0], r) for r in results[1:])


def test_consolidation_is_the_same_for_any_number_of_threads(threads):
    x = make_inputs(4000, 1, objects=2, value_channels=24)
    results = []
    for count in (1, 2, 7):
        threads(count)
        results.append(xmemk.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, 100, backend="cpu"))
    assert all(equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 37, 3001])
def test_every_vector_set(pin, dtype, n):
    x = make_inputs(n, 90, objects=2, value_channels=37, dtype=dtype)
    results = []
    for name in ("", *vector_sets()):
        pin(name)
        dense = xmemk.memory_read(*x.read, return_usage=True, backend="cpu")
        compare_read(x, *dense).check()
        sparse = xmemk.memory_read(*x.read, top_k=30, return_usage=True, backend="cpu")
        compare_read(x, *sparse, 30).check()
        results.append(xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=30, backend="cpu"))
    assert "portable" in vector_sets()
    for weight, index in results[1:]:
        assert torch.equal(index.sort(2).values, results[0][1].sort(2).values)
        compare_close("weight", weight, results[0][0], 1e-5).check()
    with pytest.raises(ValueError, match="no sse9"):
        pin("sse9")


@pytest.mark.parametrize("k", [1, 2, 31, 255, 256, 257, 1000, 2999, 3000, 10_000])
def test_any_k(k):
    x = make_inputs(3000, 70, value_channels=8)
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=k, backend="cpu")
    compare_topk(x, weight, index, k).check()
    readout, usage = xmemk.memory_read(*x.read, top_k=k, return_usage=True, backend="cpu")
    compare_usage(x, usage, k).check()
    compare_close("readout", readout, reference.memory_read(*x.double().read, top_k=k), 2e-5).check()


def scores(kind, n):
    """A memory of one channel, read from 0: all equal, ascending, descending, or in steps of equal scores."""
    position = torch.arange(n, dtype=torch.float32)
    distance = {
        "equal": torch.ones(n),
        "ascending": 2 - position / n,
        "descending": 1 + position / n,
        "steps": 2 - (position // 700) / n,
        "saw": 2 - (position % 700) / n,
    }[kind]
    return distance.view(1, 1, n)


KINDS = ["equal", "ascending", "descending", "steps", "saw"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 30, 400])
def test_ties_and_orders(kind, k):
    n = 9000
    mk, qk = scores(kind, n), torch.zeros(1, 1, 65)
    weight, index = xmemk.affinity_topk(mk, None, qk, None, top_k=k, backend="cpu")
    assert (index.sort(2).values.diff(dim=2) != 0).all()
    assert torch.equal(index, index[:, :1].expand_as(index))
    if kind in ("equal", "steps", "saw"):
        _, lowest = reference.affinity_topk(mk.double(), None, qk.double(), None, top_k=k)
        distinct = mk.flatten()[index[0, 0]]
        assert torch.equal(distinct, mk.flatten()[lowest[0, 0]])
    if kind == "equal":
        assert torch.equal(index[0, 0], torch.arange(k))
    compare_close("weight", weight.sum(2), torch.ones(1, 65), 1e-5).check()


def test_lowest_index_among_equals_across_tiles_and_splits(threads):
    mk = torch.tensor([0.0, 1.0, 2.0]).repeat(4000).view(1, 1, -1)
    qk = torch.tensor([[[0.25, 1.25, 1.75]]])
    for count in (1, 4):
        threads(count)
        for k in (1, 100, 5000):
            _, index = xmemk.affinity_topk(mk, None, qk, None, top_k=k, backend="cpu")
            _, lowest = reference.affinity_topk(mk, None, qk, None, top_k=k)
            assert torch.equal(index, lowest)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equal", "ascending"])
def test_adversarial_orders_take_no_more_than_three_times_as_long(kind, pin):
    n, q = 60_000, 128
    mk = torch.cat([scores(kind, n), torch.zeros(1, 63, n)], 1).transpose(1, 2).contiguous().transpose(1, 2)
    qk = torch.zeros(1, 64, q)
    usual = make_inputs(n, q, value_channels=1)

    def seconds(*args):
        best = math.inf
        for _ in range(7):
            start = time.perf_counter()
            xmemk.affinity_topk(*args, top_k=30, backend="cpu")
            best = min(best, time.perf_counter() - start)
        return best

    adversarial = seconds(mk, None, qk, None)
    pin(next(name for name in vector_sets() if name != "avx512vnni"))  # those without a first look in 8 bits
    assert adversarial < 3 * seconds(usual.mk, usual.ms, usual.qk, usual.qe)


@pytest.mark.parametrize("top_k", [None, 30])
def test_a_memory_larger_than_the_packed_bank(top_k):
    # 64 MB hold 127,000 tokens of 64 channels; the rest is packed in turn.
    x = make_inputs(300_000, 5, value_channels=3)
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="cpu")
    exact = x.double()
    wanted, used = reference.memory_read(*exact.read, top_k=top_k, return_usage=True)
    compare_close("readout", readout, wanted, 2e-5).check()
    compare_close("usage", usage, used, 2e-5).check()


@pytest.mark.parametrize(("n", "top_k"), [(300, 255), (950, 30), (961, 30), (3000, 256)])
def test_weights_are_those_of_exact_scores_in_memories_of_any_size(n, top_k):
    x = make_inputs(n, 70, value_channels=1, shrinkage=False)
    x.mk[..., ::2] += 30  # two clusters far apart: the product of the expanded form cancels
    x.qk[..., ::2] += 30
    weight, index = xmemk.affinity_topk(x.mk, None, x.qk, x.qe, top_k=top_k, backend="cpu")
    exact = x.double()
    score = reference.similarity(exact.mk, None, exact.qk, exact.qe).transpose(1, 2).gather(2, index)
    assert (weight - score.softmax(2)).abs().max() < 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured on Linux alone")
def test_usage_of_a_large_memory_takes_few_megabytes(threads):
    threads(16)
    mk = torch.rand(1, 1_000_000, 2).transpose(1, 2)
    mv, qk = mk[:, None, :1], torch.rand(1, 2, 1024)
    xmemk.memory_read(mk[..., :300], None, mv[..., :300], qk[..., :64], None, return_usage=True, backend="cpu")
    with Peak(torch.device("cpu")) as peak:
        xmemk.memory_read(mk, None, mv, qk, None, return_usage=True, backend="cpu")
    assert peak.bytes < (64 + 16 * 4 + 20) << 20  # the bank, 4 MB a thread, and what is returned


@pytest.mark.slow
def test_ten_million_tokens():
    n = 10_000_000
    mk = torch.rand(1, n, 2).transpose(1, 2)
    mv = torch.arange(float(n)).view(1, 1, 1, n)
    places = torch.tensor([0, 1, 4_999_999, n - 1])
    qk = mk[..., places]
    mk = mk.contiguous()
    mk[:, :, places] = qk
    weight, index = xmemk.affinity_topk(mk, None, qk, None, top_k=3, backend="cpu")
    score = -(mk[0, :, :, None] - qk[0, :, None, :]).square().sum(0)
    shortfall = score.topk(3, 0).values[-1] - score.gather(0, index[0].T).amin(0)
    assert shortfall.max() < 1e-6  # some roundings of numbers around 1
    assert (index.sort(2).values.diff(dim=2) > 0).all()
    readout = xmemk.readout_topk(mv, torch.ones_like(weight)[..., :1].contiguous(), index[..., :1].contiguous())
    assert torch.equal(readout[0, 0, 0], index[0, :, 0].float())


@pytest.mark.parametrize("top_k", [None, 30])
def test_a_hundred_thousand_queries(top_k):
    x = make_inputs(40, 100_000, key_channels=4, value_channels=2)
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="cpu")
    compare_read(x, readout, usage, top_k=top_k).check()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("top_k", [None, 30])
@pytest.mark.parametrize(("n", "q"), [(5000, 70), (3000, 2)])
def test_bad_tokens_in_a_large_memory(bad, top_k, n, q):
    x = make_inputs(n, q, value_channels=4)
    x.mk[..., ::7] = bad
    x.qk[:, 3, 1] = bad
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="cpu")
    assert (usage[:, ::7] == 0).all()
    assert usage.sum().item() == pytest.approx(q - 1, rel=1e-5)
    assert readout[..., 1].isnan().all()
    assert readout.isnan().sum() == 4
    keep = [i for i in range(n) if i % 7]
    exact = x.double()
    wanted = reference.memory_read(
        *(t[..., keep] for t in (exact.mk, exact.ms, exact.mv)), exact.qk, exact.qe, top_k=top_k
    )
    compare_close("readout", readout[..., :1], wanted[..., :1], 1e-4).check()


def test_fewer_readable_tokens_than_k():
    x = make_inputs(40, 3, value_channels=4)
    x.mk[..., 5:] = math.nan
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=9, backend="cpu")
    assert (weight[..., 5:] == 0).all()
    assert torch.equal(index[..., 5:], index[..., :1].expand(-1, -1, 4))
    x.mk[:] = math.nan
    weight, index, usage = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=9, return_usage=True, backend="cpu")
    assert weight.isnan().all()
    assert (index == 0).all()
    assert (usage == 0).all()


def test_usage_of_many_queries_is_exact_to_the_last_digits():
    x = make_inputs(600, 20_000, value_channels=1)
    for top_k in (None, 30):
        _, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="cpu")
        compare_usage(x, usage, top_k).check()


@pytest.mark.parametrize("major", ["token", "channel", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layouts_of_values(major, dtype):
    x = make_inputs(900, 40, objects=3, value_channels=20, batch=2)
    mv = x.mv.to(dtype)
    if major == "channel":
        mv = mv.contiguous()
    elif major == "mixed":
        mv = mv.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    x.mv = mv
    for top_k in (None, 15):
        readout = xmemk.memory_read(x.mk, x.ms, mv, x.qk, x.qe, top_k=top_k, backend="cpu")
        assert readout.stride(2) == 1
        compare_read(x, readout, top_k=top_k).check()


def test_an_index_out_of_bounds():
    mv, weight = torch.rand(1, 1, 4, 10), torch.rand(1, 2, 3)
    for bad in (-1, 10):
        index = torch.tensor([[[0, 1, 2], [3, bad, 4]]])
        with pytest.raises(IndexError, match=f"wanted 0 to 9.*got {bad}"):
            xmemk.readout_topk(mv, weight, index, backend="cpu")


@pytest.mark.parametrize("shrinkage", [True, False])
def test_operators_pass_opcheck(shrinkage):
    x = make_inputs(40, 7, objects=2, value_channels=5, batch=2, shrinkage=shrinkage)
    mk, mv = [x.mk[..., :9], x.mk[..., 9:]], [x.mv[..., :9], x.mv[..., 9:]]
    ms = [x.ms[..., :9], x.ms[..., 9:]] if shrinkage else []
    for top_k, usage in ((None, True), (5, True), (5, False), (100, True)):
        torch.library.opcheck(torch.ops.xmemk.memory_read, (mk, ms, mv, x.qk, x.qe, top_k, usage))
    for top_k in (5, 100):
        torch.library.opcheck(torch.ops.xmemk.affinity_topk, (mk, ms, x.qk, None, top_k, True))
    weight, index = xmemk.affinity_topk(mk, ms or None, x.qk, x.qe, top_k=5)
    torch.library.opcheck(torch.ops.xmemk.readout_topk, (mv, weight, index))
    torch.library.opcheck(torch.ops.xmemk.potentiate, (mk, ms, mv, x.qk, x.qe))


def test_operators_check_what_they_are_given():
    # The public functions check first; the operators can be called without them.
    x = make_inputs(20, 3, value_channels=2)
    op = torch.ops.xmemk.memory_read
    with pytest.raises(ValueError, match="ms"):
        op([x.mk], [x.ms, x.ms], [x.mv], x.qk, x.qe, 3, False)
    with pytest.raises(ValueError, match="mv"):
        op([x.mk], [x.ms], [x.mv[..., :9]], x.qk, x.qe, 3, False)
    with pytest.raises(TypeError, match="qk"):
        op([x.mk.double()], [], [x.mv], x.qk.double(), None, 3, False)
    with pytest.raises(ValueError, match="top_k"):
        op([x.mk], [], [x.mv], x.qk, None, 0, False)
    with pytest.raises(ValueError, match="tokens"):
        op([x.mk[..., :0]], [], [x.mv[..., :0]], x.qk, None, 3, False)
