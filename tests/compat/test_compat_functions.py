"""The four functions for import lines: the hosts' results, computed lazily."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hosts.xmem_like import memory_util as host

from xmemk.compat import cutie, xmem
from xmemk.compat.lazy import Lazy, LazySimilarity, SoftAffinity, SparseAffinity
from xmemk.testing import make_inputs

N, Q = 60, 12


@pytest.fixture
def x():
    return make_inputs(N, Q, batch=2, value_channels=5, token_major=False)


def close(a, b):
    return torch.allclose(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("ours", [xmem, cutie])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("selection", [True, False])
def test_results_are_the_hosts(x, ours, mode, top_k, shrinkage, selection):
    ms, qe = x.ms if shrinkage else None, x.qe if selection else None
    if not selection and top_k is not None:
        x.mk, x.qk = x.mk * 0.3, x.qk * 0.3  # the released top-k softmax overflows above 88
    mv = x.mv[:, 0].reshape(2, 5, 5, 3, 4)
    with mode():
        expected, expected_usage = host.do_softmax(host.get_similarity(x.mk, ms, x.qk, qe), top_k, return_usage=True)
        similarity = ours.get_similarity(x.mk, ms, x.qk, qe)
        affinity, usage = ours.do_softmax(similarity, top_k=top_k, return_usage=True)
        assert close(usage, expected_usage)
        assert close(ours.readout(affinity, mv), host.readout(expected, mv))
        assert close(
            ours.readout(ours.do_softmax(similarity, top_k=top_k, inplace=True), mv), host.readout(expected, mv)
        )
        assert close(affinity + 0, expected)
        if top_k is None:
            assert close(ours.get_affinity(x.mk, ms, x.qk, qe) + 0, host.get_affinity(x.mk, ms, x.qk, qe))


def test_a_chain_never_builds_the_matrix(x):
    similarity = xmem.get_similarity(x.mk, x.ms, x.qk, x.qe)
    affinity, _ = xmem.do_softmax(similarity, top_k=7, return_usage=True)
    soft = xmem.get_affinity(x.mk, x.ms, x.qk, x.qe)
    values = x.mv[:, 0]
    for lazy in (affinity, soft):
        for product in (values @ lazy, torch.matmul(values, lazy), torch.bmm(values, lazy), values.matmul(lazy)):
            assert product.shape == (2, 5, Q)
            assert not isinstance(product, Lazy)
        xmem.readout(lazy, values.reshape(2, 5, 5, 3, 4))
    assert isinstance(similarity, LazySimilarity)
    assert isinstance(affinity, SparseAffinity)
    assert isinstance(soft, SoftAffinity)
    assert not any(lazy.computed for lazy in (similarity, affinity, soft))
    assert "computed=False" in repr(similarity)
    assert similarity.shape == (2, N, Q)
    assert similarity.dtype == torch.float32
    assert not similarity.computed


def test_objects_times_one_affinity(x):
    mk, ms, qk, qe = (t[:1] for t in (x.mk, x.ms, x.qk, x.qe))
    affinity = xmem.do_softmax(xmem.get_similarity(mk, ms, qk, qe), top_k=7)
    expected = host.do_softmax(host.get_similarity(mk, ms, qk, qe), top_k=7)
    values = torch.randn(3, 5, N)
    assert close(values @ affinity, values @ expected)
    assert close(values[0] @ affinity, values[0] @ expected)
    assert not affinity.computed


def test_any_other_use_computes_once(x):
    expected = host.get_similarity(x.mk, x.ms, x.qk, x.qe)
    similarity = xmem.get_similarity(x.mk, x.ms, x.qk, x.qe)
    assert close(similarity[:, 5:], expected[:, 5:])
    assert similarity.computed
    first = similarity.dense()
    assert close(torch.cat([similarity[:, :4], expected[:, 4:]], 1), expected)
    assert similarity.dense() is first
    similarity.mul_(2)
    assert close(similarity + 0, 2 * expected)
    assert close(xmem.do_softmax(similarity, top_k=7) + 0, host.do_softmax(2 * expected, top_k=7))
    assert isinstance(similarity, torch.Tensor)


@pytest.mark.parametrize("top_k", [None, 7])
def test_leaves_torch_as_a_plain_tensor_does(x, top_k, tmp_path):
    expected = host.do_softmax(host.get_similarity(x.mk, x.ms, x.qk, x.qe), top_k=top_k)

    def affinity():
        return xmem.do_softmax(xmem.get_similarity(x.mk, x.ms, x.qk, x.qe), top_k=top_k)

    torch.save(affinity(), tmp_path / "affinity")
    for result in (
        torch.from_numpy(affinity().cpu().numpy()),
        torch.from_numpy(np.asarray(affinity())),
        torch.tensor(affinity().tolist()),
        copy.deepcopy(affinity()),
        pickle.loads(pickle.dumps(affinity())),
        torch.load(tmp_path / "affinity"),
    ):
        assert type(result) is torch.Tensor
        assert close(result, expected)


@pytest.mark.parametrize("top_k", [None, 7])
def test_readouts_can_be_viewed_in_another_shape(x, top_k):
    affinity = xmem.do_softmax(xmem.get_similarity(x.mk[:1], x.ms[:1], x.qk[:1], x.qe[:1]), top_k=top_k)
    values = x.mv[:1, 0]
    frames = values.reshape(1, 5, 5, 3, 4)
    for result in (xmem.readout(affinity, frames), values @ affinity, values[0] @ affinity, x.mv[:, 0] @ affinity):
        assert result.is_contiguous()
    assert not affinity.computed


def test_inplace_writes_into_a_plain_similarity():
    similarity = torch.randn(1, 9, 4)
    expected = host.do_softmax(similarity, top_k=3)
    affinity = xmem.do_softmax(similarity, top_k=3, inplace=True)
    assert affinity is similarity
    assert close(similarity, expected)
    assert close(xmem.do_softmax(torch.zeros(1, 2, 4), top_k=3), torch.full((1, 2, 4), 0.5))  # fewer than top_k: all


def test_a_source_that_changes_in_between_is_noticed(x):
    similarity = xmem.get_similarity(x.mk, x.ms, x.qk, x.qe)
    x.mk.add_(1)
    with pytest.raises(RuntimeError, match="changed in place between get_similarity"):
        xmem.do_softmax(similarity, top_k=7)
    with pytest.raises(RuntimeError, match="changed in place"):
        similarity.sum()


def test_gradients(x):
    leaves = [t.double().requires_grad_() for t in (x.mk, x.ms, x.qk, x.qe)]
    mv = x.mv[:, 0].double().reshape(2, 5, 5, 3, 4).requires_grad_()
    affinity = xmem.get_affinity(*leaves)
    assert not isinstance(affinity, Lazy)
    ours = torch.autograd.grad(xmem.readout(affinity, mv).square().sum(), [*leaves, mv])
    expected = torch.autograd.grad(host.readout(host.get_affinity(*leaves), mv).square().sum(), [*leaves, mv])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(ours, expected))
    # Values alone may want gradients: the affinity stays lazy.
    lazy = xmem.do_softmax(xmem.get_similarity(*(t.detach() for t in leaves)), top_k=7)
    (result,) = torch.autograd.grad(xmem.readout(lazy, mv).sum(), [mv])
    assert result.shape == mv.shape
    assert not lazy.computed


def test_without_a_batch(x):
    ours = cutie.get_similarity(x.mk[0], x.ms[0], x.qk[0], x.qe[0], add_batch_dim=True)
    assert close(ours + 0, host.get_similarity(x.mk[:1], x.ms[:1], x.qk[:1], x.qe[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("top_k", [None, 7])
def test_readouts_under_autocast_have_its_type(x, top_k, dtype):
    values = x.mv[:, 0]
    frames = values.reshape(2, 5, 5, 3, 4)
    exact = host.readout(host.do_softmax(host.get_similarity(x.mk, x.ms, x.qk, x.qe), top_k=top_k), frames)
    with torch.autocast("cpu", dtype):
        expected = host.readout(host.do_softmax(host.get_similarity(x.mk, x.ms, x.qk, x.qe), top_k=top_k), frames)
        affinity = xmem.do_softmax(xmem.get_similarity(x.mk, x.ms, x.qk, x.qe), top_k=top_k)
        result, product = xmem.readout(affinity, frames), values @ affinity
        assert not affinity.computed
        assert (affinity + 0).dtype == torch.float32
        computed = xmem.readout(affinity, frames)
        doubles = [t.double() for t in (x.mk, x.ms, x.qk, x.qe)]
        double = xmem.readout(xmem.do_softmax(xmem.get_similarity(*doubles), top_k=top_k), frames.double())
    assert result.dtype == product.dtype == computed.dtype == expected.dtype == dtype
    assert double.dtype == torch.float64
    for readout in (result, product.unflatten(2, (3, 4)), computed):
        assert torch.allclose(readout.float(), exact, atol=0.02, rtol=0.02)


def test_frames_and_sixteen_bits(x):
    video = x.mk[:, :, :60].reshape(2, 64, 5, 3, 4)
    shrinkage = x.ms[:, :, :60].reshape(2, 1, 5, 3, 4)
    query, selection = x.qk.reshape(2, 64, 3, 4), x.qe.reshape(2, 64, 3, 4)
    result = xmem.get_similarity(video, shrinkage, query, selection)
    assert close(result + 0, host.get_similarity(x.mk, x.ms, x.qk, x.qe))
    half = [t.to(torch.float16) for t in (x.mk, x.ms, x.qk, x.qe)]
    similarity = xmem.get_similarity(*half)
    assert similarity.dtype == torch.float16
    assert xmem.get_similarity(half[0], x.ms, half[2], half[3]).dtype == torch.float32
    readout = x.mv[:, 0].half() @ xmem.do_softmax(similarity, top_k=7)
    assert readout.dtype == torch.float16
