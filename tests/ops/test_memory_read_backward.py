"""Gradients of memory_read on the CPU against the oracle's autograd, and what they keep."""

import gc

import pytest
import torch

import xmemk
from xmemk import reference
from xmemk.testing import make_inputs


def leaves(n=40, q=13, dtype=torch.float64, **options):
    x = make_inputs(n, q, objects=2, key_channels=6, value_channels=5, batch=2, dtype=dtype, **options)
    for t in x.read:
        if t is not None:
            t.requires_grad_()
    return x


def gradients(read, x, upstream):
    inputs = [t for t in x.read if t is not None]
    return torch.autograd.grad(read(), inputs, upstream)


def relative(got, wanted):
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("top_k", [None, 1, 7, 40, 99])
@pytest.mark.parametrize("optional", [{}, {"shrinkage": False}, {"selection": False}])
def test_equal_to_the_oracle(top_k, optional):
    x = leaves(**optional)
    upstream = torch.randn(2, 2, 5, 13, dtype=torch.float64), torch.randn(2, 40, dtype=torch.float64)
    options = {"top_k": top_k, "return_usage": True}
    ours = gradients(lambda: xmemk.memory_read(*x.read, **options), x, upstream)
    truth = gradients(lambda: reference.memory_read(*x.read, **options), x, upstream)
    for got, wanted in zip(ours, truth):
        if wanted.abs().max() < 1e-12:  # one token: the softmax is constant
            assert got.abs().max() < 1e-12
        else:
            assert relative(got, wanted) < 1e-12


@pytest.mark.parametrize("top_k", [None, 7])
def test_segments(top_k):
    x = leaves()
    upstream = torch.randn(2, 2, 5, 13, dtype=torch.float64), torch.randn(2, 40, dtype=torch.float64)

    def cut(t):
        return [t[..., :11], t[..., 11:11], t[..., 11:]]

    ours = gradients(
        lambda: xmemk.memory_read(cut(x.mk), cut(x.ms), cut(x.mv), x.qk, x.qe, top_k=top_k, return_usage=True),
        x,
        upstream,
    )
    truth = gradients(lambda: reference.memory_read(*x.read, top_k=top_k, return_usage=True), x, upstream)
    assert max(map(relative, ours, truth)) < 1e-12


@pytest.mark.parametrize("top_k", [None, 3])
def test_gradcheck(top_k):
    x = make_inputs(9, 4, objects=2, key_channels=3, value_channels=2, dtype=torch.float64)
    inputs = [t.contiguous().requires_grad_() for t in x.read]
    assert torch.autograd.gradcheck(lambda *a: xmemk.memory_read(*a, top_k=top_k, return_usage=True), inputs)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("top_k", [None, 7])
def test_float32_gradients_are_as_good_as_plain_autograd(top_k, backend):
    x = leaves(dtype=torch.float32)
    upstream = torch.randn(2, 2, 5, 13, generator=torch.Generator().manual_seed(0))
    ours = gradients(lambda: xmemk.memory_read(*x.read, top_k=top_k, backend=backend), x, upstream)
    plain = gradients(lambda: reference.memory_read(*x.read, top_k=top_k), x, upstream)
    exact = x.double()
    for t in exact.read:
        t.requires_grad_()
    truth = gradients(lambda: reference.memory_read(*exact.read, top_k=top_k), exact, upstream.double())
    for got, usual, wanted in zip(ours, plain, truth):
        error, usual_error = ((g.double() - wanted).abs().max() for g in (got, usual))
        # Some roundings of the largest gradient: each is a sum over 40 tokens or 13 queries.
        assert error <= 2 * usual_error + 5e-6 * wanted.abs().max()


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("top_k", [None, 7])
def test_half_inputs_get_half_gradients(top_k, backend):
    x = leaves(dtype=torch.float16)
    readout = xmemk.memory_read(*x.read, top_k=top_k, backend=backend)
    readout.float().square().mean().backward()
    assert [t.grad.dtype for t in x.read] == [t.dtype for t in x.read]
    assert all(t.grad.isfinite().all() for t in x.read)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 2, 0)])
def test_empty_batches_objects_and_channels(top_k, shape):
    b, o, cv = shape
    x = make_inputs(9, 4, batch=b, objects=o, value_channels=cv, key_channels=3, dtype=torch.float64)
    for t in x.read:
        t.requires_grad_()
    grads = gradients(lambda: xmemk.memory_read(*x.read, top_k=top_k), x, torch.ones(b, o, cv, 4, dtype=torch.float64))
    assert [g.shape for g in grads] == [t.shape for t in x.read]
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("top_k", [None, 7])
def test_a_key_that_is_not_finite_spoils_no_gradient(top_k):
    x = leaves()
    with torch.no_grad():
        x.mk[0, 2, 5] = float("nan")
        x.ms[1, 0, 6] = float("inf")
    grads = gradients(lambda: xmemk.memory_read(*x.read, top_k=top_k), x, torch.ones(2, 2, 5, 13, dtype=torch.float64))
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0][0, :, 5] == 0).all()


def test_only_what_needs_a_gradient_gets_one():
    x = make_inputs(20, 5, value_channels=3)
    x.mv.requires_grad_()
    xmemk.memory_read(*x.read, top_k=4).sum().backward()
    assert x.mv.grad is not None
    assert x.mk.grad is None


def test_usage_alone_has_a_gradient():
    x = leaves()
    _, usage = xmemk.memory_read(*x.read, return_usage=True)
    (got,) = torch.autograd.grad(usage[:, 0].sum(), x.qk)
    _, usage = reference.memory_read(*x.read, return_usage=True)
    (wanted,) = torch.autograd.grad(usage[:, 0].sum(), x.qk)
    assert relative(got, wanted) < 1e-12


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_nothing_of_size_n_times_q_is_kept_for_the_backward(top_k, backend):
    n, q = 3000, 1000
    x = make_inputs(n, q, value_channels=8)
    for t in x.read:
        t.requires_grad_()
    gc.collect()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        xmemk.memory_read(*x.read, top_k=top_k, backend=backend)
    assert kept
    assert max(kept) < n * q // 10
