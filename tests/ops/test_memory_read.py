"""memory_read: every backend that serves CPU tensors against the float64 oracle."""

import itertools
import math

import pytest
import torch
from extension import CPU_BACKENDS

import xmemk
from xmemk import reference
from xmemk.testing import compare_close, compare_read, compare_topk, make_inputs

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("top_k", [None, 1, 30, 256])
@pytest.mark.parametrize(
    ("n", "q", "objects", "batch"), [(1, 1, 1, 1), (29, 7, 2, 1), (300, 65, 5, 2), (1031, 1, 1, 1)]
)
def test_agrees_with_the_oracle(backend, dtype, top_k, n, q, objects, batch):
    x = make_inputs(n, q, objects=objects, batch=batch, value_channels=24, dtype=dtype, seed=n + q)
    if backend == "cpu" and dtype == torch.float64:
        with pytest.raises(ValueError, match=r"'cpu' has no float64 kernel.*Would do: 'torch'"):
            xmemk.memory_read(*x.read, top_k=top_k, backend=backend)
        return
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
    assert readout.dtype == dtype
    assert usage.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    compare_read(x, readout, usage, top_k).check()
    assert torch.equal(xmemk.memory_read(*x.read, top_k=top_k, backend=backend), readout)
    if top_k is not None:
        weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=top_k, backend=backend)
        compare_topk(x, weight, index, top_k).check()


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("selection", [True, False])
@pytest.mark.parametrize("token_major", [True, False])
@pytest.mark.parametrize("top_k", [None, 9])
def test_optional_arguments_and_layouts(backend, shrinkage, selection, token_major, top_k):
    x = make_inputs(
        200, 40, objects=2, value_channels=16, shrinkage=shrinkage, selection=selection, token_major=token_major
    )
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
    compare_read(x, readout, usage, top_k).check()


def test_strided_views(backend):
    x = make_inputs(101, 30, value_channels=12, batch=2)
    wide = {name: getattr(x, name) for name in ("mk", "ms", "mv", "qk", "qe")}
    spread = {name: t.repeat_interleave(2, -1)[..., ::2] for name, t in wide.items()}
    assert not any(t.is_contiguous() for t in spread.values())
    for top_k in (None, 7):
        readout, usage = xmemk.memory_read(**spread, top_k=top_k, return_usage=True, backend=backend)
        compare_read(x, readout, usage, top_k).check()


@pytest.mark.parametrize("cuts", [[0], [150], [0, 1, 1, 77], [30, 60, 90]])
@pytest.mark.parametrize("top_k", [None, 12, 500])
def test_segments(backend, cuts, top_k):
    x = make_inputs(150, 33, objects=2, value_channels=8, batch=2)
    edges = [0, *cuts, 150]
    mk, ms, mv = ([t[..., a:b] for a, b in itertools.pairwise(edges)] for t in (x.mk, x.ms, x.mv))
    readout, usage = xmemk.memory_read(mk, ms, mv, x.qk, x.qe, top_k=top_k, return_usage=True, backend=backend)
    compare_read(x, readout, usage, top_k).check()
    if top_k is not None:
        weight, index = xmemk.affinity_topk(mk, ms, x.qk, x.qe, top_k=top_k, backend=backend)
        compare_topk(x, weight, index, min(top_k, 150)).check()
        again = xmemk.readout_topk(mv, weight, index, backend=backend)
        compare_close("readout", again, readout, 1e-5).check()


@pytest.mark.parametrize("top_k", [None, 10])
def test_more_queries_than_one_block(backend, top_k, monkeypatch):
    from xmemk.plain import blocks

    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 64 * 4 * 300)
    x = make_inputs(300, 500, value_channels=8)
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
    compare_read(x, readout, usage, top_k).check()


def test_values_of_another_dtype_and_shrinkage_in_half(backend):
    x = make_inputs(90, 20, value_channels=8, dtype=torch.float16)
    readout = xmemk.memory_read(x.mk, x.ms.half(), x.mv.float(), x.qk, x.qe, top_k=5, backend=backend)
    assert readout.dtype == torch.float32
    x.ms, x.mv = x.ms.half(), x.mv.float()
    compare_read(x, readout, top_k=5).check()


@pytest.mark.parametrize("top_k", [None, 1, 6])
def test_equal_scores(backend, top_k):
    # Three kinds of token, each nine times: ties at rank k, whatever k; values tell which were
    # chosen.
    mk = torch.tensor([[[0.0, 1.0, 2.0] * 9]])
    mv = torch.arange(27.0).view(1, 1, 1, 27)
    qk = torch.tensor([[[0.25, 1.25]]])
    readout, usage = xmemk.memory_read(mk, None, mv, qk, None, top_k=top_k, return_usage=True, backend=backend)
    wanted, used = reference.memory_read(
        mk.double(), None, mv.double(), qk.double(), None, top_k=top_k, return_usage=True
    )
    compare_close("readout", readout, wanted, 1e-5).check()
    compare_close("usage", usage, used, 1e-6).check()
    if top_k is not None:
        _, index = xmemk.affinity_topk(mk, None, qk, None, top_k=top_k, backend=backend)
        _, lowest = reference.affinity_topk(mk, None, qk, None, top_k=top_k)
        assert torch.equal(index, lowest)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("top_k", [None, 3, 60])
def test_a_key_that_is_not_finite_is_never_read(backend, bad, top_k):
    x = make_inputs(50, 8, value_channels=4)
    for where in ("key", "shrinkage"):
        mk, ms = x.mk.clone(), x.ms.clone()
        if where == "key":
            mk[0, 5, 17] = bad
        else:
            ms[0, 0, 17] = abs(bad)
        readout, usage = xmemk.memory_read(mk, ms, x.mv, x.qk, x.qe, top_k=top_k, return_usage=True, backend=backend)
        keep = [i for i in range(50) if i != 17]
        without = make_inputs(50, 8, value_channels=4)
        without.mk, without.ms, without.mv = x.mk[..., keep], x.ms[..., keep], x.mv[..., keep]
        assert usage[0, 17] == 0
        compare_read(without, readout, usage[:, keep], top_k).check()


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_query_that_is_not_finite_reads_nan_and_is_not_used(backend, top_k):
    x = make_inputs(50, 8, value_channels=4)
    x.qk[0, 3, 2] = math.nan
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
    assert readout[..., 2].isnan().all()
    assert readout.isnan().sum() == 4
    assert usage.sum().item() == pytest.approx(7, abs=1e-5)


def test_enormous_numbers_do_not_turn_into_garbage(backend):
    # Squares of 1e20 overflow float32: those tokens are infinitely far away, the others are read.
    x = make_inputs(40, 6, value_channels=4)
    mk = x.mk.clone()
    mk[..., 7:20] = 1e20
    keep = [*range(7), *range(20, 40)]
    readout, usage = xmemk.memory_read(mk, x.ms, x.mv, x.qk, x.qe, top_k=5, return_usage=True, backend=backend)
    assert (usage[0, 7:20] == 0).all()
    wanted = reference.memory_read(
        *(t[..., keep].double() for t in (x.mk, x.ms, x.mv)), x.qk.double(), x.qe.double(), top_k=5
    )
    compare_close("readout", readout, wanted, 1e-3).check()


def test_far_scores_do_not_underflow(backend):
    x = make_inputs(60, 9, value_channels=4)
    x.qk += 100  # every score is below -1e4; exp() of them all is 0
    for top_k in (None, 5):
        readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
        assert readout.isfinite().all()
        assert usage.sum().item() == pytest.approx(9, rel=1e-5)


def test_a_few_outliers_cost_the_others_no_accuracy(backend):
    x = make_inputs(400, 50, value_channels=8)
    x.mk[..., ::40] = 1e5
    truth = reference.memory_read(*x.double().read)
    compare_close("readout", xmemk.memory_read(*x.read, backend=backend), truth, 3e-5).check()


@pytest.mark.parametrize("offset", [0.0, 30.0, 300.0])
def test_a_common_offset_costs_no_accuracy(backend, offset):
    # The terms of Eq. 2 grow with the square of the offset and cancel; the original loses its
    # digits here.
    x = make_inputs(400, 50, value_channels=8)
    exact = x.double()
    exact.mk, exact.qk = exact.mk + offset, exact.qk + offset
    x.mk, x.qk = exact.mk.float(), exact.qk.float()
    truth = reference.memory_read(*x.double().read)
    ours = xmemk.memory_read(*x.read, backend=backend)
    original = reference.memory_read(*x.read)
    ours_error, original_error = ((r.double() - truth).abs().max().item() for r in (ours, original))
    assert ours_error < 3e-5
    if offset:
        assert ours_error < original_error / 3


def test_no_queries_no_objects_no_batch(backend):
    for shape in ({"q": 0}, {"objects": 0}, {"batch": 0}):
        sizes = {"q": 5, "objects": 2, "batch": 1, **shape}
        q = sizes.pop("q")
        x = make_inputs(20, q, value_channels=4, **sizes)
        for top_k in (None, 3):
            readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
            assert readout.shape == (sizes["batch"], sizes["objects"], 4, q)
            assert usage.shape == (sizes["batch"], 20)
            assert usage.sum() == pytest.approx(q * sizes["batch"], rel=1e-5)


def test_autocast_does_not_touch_the_similarity(backend):
    x = make_inputs(300, 40, value_channels=8)
    plain = xmemk.memory_read(*x.read, top_k=8, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(xmemk.memory_read(*x.read, top_k=8, backend=backend), plain)


def test_one_result_for_any_number_of_threads(backend):
    x = make_inputs(2000, 300, objects=2, value_channels=32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            results.append(xmemk.memory_read(*x.read, top_k=20, return_usage=True, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[2][0])
    compare_close("readout", results[0][0], results[1][0], 1e-5).check()
