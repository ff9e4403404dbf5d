"""Gradients of the Triton kernels, under Triton's interpreter, against the oracle's in float64."""

import pytest
import torch
from interpreter import interpreted

import xmemk
from xmemk.testing import make_inputs


def gradients(read, x, dtype, seed=0, usage=True, **more):
    g = torch.Generator().manual_seed(seed)
    tensors = [None if t is None else t.detach().to(dtype).requires_grad_() for t in x.read]
    readout, used = read(*tensors, return_usage=True, **more)
    loss = (readout * torch.randn(readout.shape, generator=g).to(dtype)).sum()
    if usage:
        loss = loss + (used * torch.randn(used.shape, generator=g).to(dtype)).sum()
    return torch.autograd.grad(loss, [t for t in tensors if t is not None])


def check(x, top_k, usage=True):
    """No worse than four times plain PyTorch in float32, and some roundings of the largest."""
    wanted = gradients(xmemk.reference.memory_read, x, torch.float64, usage=usage, top_k=top_k)
    plain = gradients(xmemk.reference.memory_read, x, torch.float32, usage=usage, top_k=top_k)
    got = gradients(xmemk.memory_read, x, torch.float32, usage=usage, top_k=top_k, backend="triton")
    for a, b, c in zip(got, wanted, plain):
        allowed = 4 * (c - b).abs().max() + 2**-18 * b.abs().max()
        assert a.shape == b.shape
        assert (a - b).abs().max() <= allowed
    return got


@interpreted
@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("more", [{}, {"batch": 2, "shrinkage": False, "selection": False, "token_major": False}])
def test_gradients_agree_with_the_oracle(top_k, more):
    check(make_inputs(70, 3, objects=2, key_channels=12, value_channels=7, **more), top_k)


@interpreted
@pytest.mark.parametrize("top_k", [None, 4])
def test_usage_need_not_be_used(top_k):
    check(make_inputs(40, 3, key_channels=12, value_channels=7), top_k, usage=False)


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
def test_segments_and_the_same_bits_every_time(top_k):
    x = make_inputs(60, 3, objects=2, key_channels=12, value_channels=7)
    whole = gradients(xmemk.memory_read, x, torch.float32, top_k=top_k, backend="triton")

    def cut(mk, ms, mv, qk, qe, **more):
        return xmemk.memory_read(*(list(t.split([0, 25, 35], dim=-1)) for t in (mk, ms, mv)), qk, qe, **more)

    first, again = (gradients(cut, x, torch.float32, top_k=top_k, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    for a, b in zip(first, whole):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
def test_16_bit_inputs_get_gradients_of_their_dtype(top_k):
    x = make_inputs(40, 3, key_channels=12, value_channels=7, dtype=torch.float16)
    half = gradients(xmemk.memory_read, x, torch.float16, top_k=top_k, backend="triton", usage=False)
    wanted = gradients(xmemk.memory_read, x, torch.float32, top_k=top_k, backend="torch", usage=False)
    for a, b in zip(half, wanted):
        assert (a.float() - b).abs().max() <= 2**-8 * b.abs().max()


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
def test_tokens_that_are_not_read_get_gradient_0(top_k):
    x = make_inputs(40, 3, key_channels=12, value_channels=7)
    x.mk[0, 2, 5], x.ms[0, 0, 6] = float("nan"), float("inf")
    grads = gradients(xmemk.memory_read, x, torch.float32, top_k=top_k, backend="triton")
    assert all(g.isfinite().all() for g in grads)
    assert all((g[..., [5, 6]] == 0).all() for g in grads[:3])


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
def test_blocks_of_queries(top_k):
    from xmemk.kernels import dense_backward

    before, dense_backward.PAIR_BYTES = dense_backward.PAIR_BYTES, 1
    try:
        check(make_inputs(40, 130 if top_k is None else 6, key_channels=8, value_channels=3), top_k)
    finally:
        dense_backward.PAIR_BYTES = before
