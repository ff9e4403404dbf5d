"""The C++ memory read: what only it promises.

Agreement with the oracle is tested in test_memory_read.py.
"""

import math
import sys

import pytest
import torch
from extension import needs_extension
from vector_sets import vector_sets

import xmemk
from xmemk import reference
from xmemk.measure.peak import Peak
from xmemk.testing import compare_close, compare_read, compare_usage, make_inputs

pytestmark = needs_extension


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


@pytest.mark.parametrize("top_k", [None, 30])
def test_a_memory_larger_than_the_packed_bank(top_k):
    # 64 MB hold 127,000 tokens of 64 channels; the rest is packed in turn.
    x = make_inputs(300_000, 5, value_channels=3)
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="cpu")
    exact = x.double()
    wanted, used = reference.memory_read(*exact.read, top_k=top_k, return_usage=True)
    compare_close("readout", readout, wanted, 2e-5).check()
    compare_close("usage", usage, used, 2e-5).check()


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured on Linux alone")
def test_usage_of_a_large_memory_takes_few_megabytes(threads):
    threads(16)
    mk = torch.rand(1, 1_000_000, 2).transpose(1, 2)
    mv, qk = mk[:, None, :1], torch.rand(1, 2, 1024)
    xmemk.memory_read(mk[..., :300], None, mv[..., :300], qk[..., :64], None, return_usage=True, backend="cpu")
    with Peak(torch.device("cpu")) as peak:
        xmemk.memory_read(mk, None, mv, qk, None, return_usage=True, backend="cpu")
    assert peak.bytes < (64 + 16 * 4 + 20) << 20  # the bank, 4 MB a thread, and what is returned


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


def test_usage_of_many_queries_is_exact_to_the_last_digits():
    x = make_inputs(100, 20_000, value_channels=1)
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


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize(("top_k", "usage"), [(None, True), (5, True), (5, False), (100, True)])
def test_the_operator_passes_opcheck(shrinkage, top_k, usage):
    x = make_inputs(40, 7, objects=2, value_channels=5, batch=2, shrinkage=shrinkage)
    mk, ms, mv = ([] if t is None else [t[..., :9], t[..., 9:]] for t in (x.mk, x.ms, x.mv))
    torch.library.opcheck(torch.ops.xmemk.memory_read, (mk, ms, mv, x.qk, x.qe, top_k, usage))
