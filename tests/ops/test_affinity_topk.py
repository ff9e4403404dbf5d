"""affinity_topk: the choice of tokens and their weights, against the float64 oracle."""

import math
import time

import pytest
import torch
from extension import CPU_BACKENDS, needs_extension
from vector_sets import vector_sets

import xmemk
from xmemk import reference
from xmemk.testing import compare_close, compare_topk, compare_usage, make_inputs


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_weights_of_a_top_k_read_carry_no_cancellation(backend, offset):
    x = make_inputs(4000, 300, value_channels=1)
    x.mk, x.qk = x.mk + offset, x.qk + offset
    exact = x.double()
    score = reference.similarity(exact.mk, exact.ms, exact.qk, exact.qe).transpose(1, 2)
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=30, backend=backend)
    plain_weight, plain_index = reference.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=30)
    error, plain_error = (
        (w - score.gather(2, i).softmax(2)).abs().max().item()
        for w, i in ((weight, index), (plain_weight, plain_index))
    )
    assert error < 1e-6
    assert error < plain_error / 3


@pytest.mark.parametrize("shift", [10.0, 100.0, 1000.0])
def test_keys_in_two_clusters(backend, shift):
    # No middle key is near both; the weights of the chosen come from differences all the same.
    x = make_inputs(400, 60, value_channels=4)
    x.mk[..., ::2] += shift
    x.qk[..., ::2] += shift
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=10, backend=backend)
    compare_topk(x, weight, index, 10).check()
    exact = x.double()
    score = reference.similarity(exact.mk, exact.ms, exact.qk, exact.qe).transpose(1, 2)
    assert (weight - score.gather(2, index).softmax(2)).abs().max() < 1e-5


@needs_extension
@pytest.mark.parametrize("k", [1, 2, 31, 255, 256, 257, 1000, 2999, 3000, 10_000])
def test_any_k(k):
    x = make_inputs(3000, 70, value_channels=8)
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=k, backend="cpu")
    compare_topk(x, weight, index, k).check()
    readout, usage = xmemk.memory_read(*x.read, top_k=k, return_usage=True, backend="cpu")
    compare_usage(x, usage, k).check()
    compare_close("readout", readout, reference.memory_read(*x.double().read, top_k=k), 2e-5).check()


def scores(kind, n):
    """A memory of one channel, read from 0, whose scores are in an order of this kind."""
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


@needs_extension
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


@needs_extension
def test_lowest_index_among_equals_across_tiles_and_splits(threads):
    mk = torch.tensor([0.0, 1.0, 2.0]).repeat(4000).view(1, 1, -1)
    qk = torch.tensor([[[0.25, 1.25, 1.75]]])
    for count in (1, 4):
        threads(count)
        for k in (1, 100, 5000):
            _, index = xmemk.affinity_topk(mk, None, qk, None, top_k=k, backend="cpu")
            _, lowest = reference.affinity_topk(mk, None, qk, None, top_k=k)
            assert torch.equal(index, lowest)


@needs_extension
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


@needs_extension
@pytest.mark.parametrize(("n", "top_k"), [(300, 255), (950, 30), (961, 30), (3000, 256)])
def test_weights_are_those_of_exact_scores_in_memories_of_any_size(n, top_k):
    x = make_inputs(n, 70, value_channels=1, shrinkage=False)
    x.mk[..., ::2] += 30  # two clusters far apart: the product of the expanded form cancels
    x.qk[..., ::2] += 30
    weight, index = xmemk.affinity_topk(x.mk, None, x.qk, x.qe, top_k=top_k, backend="cpu")
    exact = x.double()
    score = reference.similarity(exact.mk, None, exact.qk, exact.qe).transpose(1, 2).gather(2, index)
    assert (weight - score.softmax(2)).abs().max() < 1e-5


@needs_extension
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


@needs_extension
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


@needs_extension
@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("top_k", [5, 100])
def test_the_operator_passes_opcheck(shrinkage, top_k):
    x = make_inputs(40, 7, batch=2, shrinkage=shrinkage)
    mk, ms = ([] if t is None else [t[..., :9], t[..., 9:]] for t in (x.mk, x.ms))
    torch.library.opcheck(torch.ops.xmemk.affinity_topk, (mk, ms, x.qk, None, top_k, True))
