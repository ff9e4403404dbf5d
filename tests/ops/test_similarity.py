"""similarity: Eq. 2 as a whole, against the float64 oracle."""

import torch

import xmemk
from xmemk import reference
from xmemk.testing import compare_close, make_inputs


def test_similarity():
    x = make_inputs(70, 30, value_channels=1)
    exact = x.double()
    wanted = reference.similarity(exact.mk, exact.ms, exact.qk, exact.qe)
    got = xmemk.similarity(x.mk, x.ms, x.qk, x.qe)
    assert got.shape == (1, 70, 30)
    compare_close("similarity", got, wanted, 1e-4).check()


def test_it_is_differentiable():
    x = make_inputs(40, 13, objects=2, key_channels=6, value_channels=5, batch=2, dtype=torch.float64)
    x.mk.requires_grad_()
    (got,) = torch.autograd.grad(xmemk.similarity(x.mk, x.ms, x.qk, x.qe).sum(), x.mk)
    (wanted,) = torch.autograd.grad(reference.similarity(x.mk, x.ms, x.qk, x.qe).sum(), x.mk)
    assert (got - wanted).abs().max() < 1e-12 * wanted.abs().max()
