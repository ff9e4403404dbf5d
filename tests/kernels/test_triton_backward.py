"""Gradients of the Triton kernels, under Triton's interpreter, against the oracle's in float64."""

from collections import Counter
from unittest import mock

import pytest
import torch
from interpreter import interpreted

import xmemk
from xmemk.inputs import MemoryInputs, QueryInputs
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
def test_gradients_of_segments_have_memory_of_their_own(top_k):
    from xmemk import kernels

    x = make_inputs(40, 3, objects=2, key_channels=12, value_channels=7)
    parts = [list(t.split([15, 25], dim=-1)) for t in x.read[:3]]
    inputs = MemoryInputs(*parts), QueryInputs(x.qk, x.qe)
    _, _, weight, index = kernels.memory_read_saving(*inputs, top_k, False)
    dk, ds, dv, dq, de = kernels.memory_read_backward(*inputs, weight, index, torch.ones(1, 2, 7, 3), None)
    grads = [*dk, *ds, *dv, dq, de]
    assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads) == 8


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dense_gradients_are_those_of_float32_before_they_are_rounded(dtype):
    from xmemk.kernels.ops import memory_read_backward_dense as dense
    from xmemk.kernels.structs import Requested

    x = make_inputs(150, 9, batch=2, objects=2, key_channels=12, value_channels=7, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    d_readout = torch.randn(2, 2, 7, 9, generator=g).to(dtype)
    leaves = [t.double().requires_grad_() for t in x.read]
    wanted = torch.autograd.grad(xmemk.reference.memory_read(*leaves), leaves, d_readout.double())
    cut = [list(t.split([60, 90], dim=-1)) for t in x.read[:3]]
    inputs = MemoryInputs(*cut), QueryInputs(x.qk, x.qe)
    dk, ds, dv, dq, de = dense.memory_read_backward(*inputs, d_readout, None, Requested())
    dv = dv.unflatten(2, (2, 7)).permute(0, 2, 3, 1)
    for got, exact in zip((dk.mT, ds.mT, dv, dq.mT, de.mT), wanted):
        assert got.dtype == torch.float32
        assert (got - exact).abs().max() <= 2**-17 * exact.abs().max()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_products(dtype):
    from xmemk.kernels import products

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 70, 150, generator=g), torch.randn(2, 150, 40, generator=g).to(dtype)
    parts = products.in_parts(x if dtype == torch.float32 else x.to(dtype))
    wanted = parts.double().sum(1) @ y.double()
    out = torch.full((2, 70, 40), float("nan"))
    for turned in (False, True):
        a = parts.mT.contiguous().mT if turned else parts
        products.multiply(a, y, out)
        assert (out - wanted).abs().max() < 2**-20 * wanted.abs().max()
        products.multiply(a, y, out, 0.5, add=True)
        assert (out - 1.5 * wanted).abs().max() < 2**-19 * wanted.abs().max()


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
    from xmemk.kernels.ops import memory_read_backward_dense as dense

    with mock.patch.object(dense, "PAIR_BYTES", 1):
        check(make_inputs(40, 130 if top_k is None else 6, key_channels=8, value_channels=3), top_k)


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize(
    "more", [{}, {"token_major": False}, {"batch": 2, "shrinkage": False, "selection": False, "token_major": False}]
)
def test_gradients_through_a_compiled_read(top_k, more):
    """One graph for all sizes. The compiler's backend only calls the operators."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    x = make_inputs(61, 3, objects=2, key_channels=6, value_channels=5, **more)  # no cut of it is contiguous
    counter = CompileCounterWithBackend("aot_eager")

    def loss(*tensors):
        readout, usage = xmemk.memory_read(*tensors, top_k=top_k, return_usage=True, backend="triton")
        return readout.square().sum() + usage.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for n in (40, 50, 60):
        whole = [
            None if t is None else t.detach()
            for t in (*(t if t is None else t[..., :n] for t in x.read[:3]), x.qk, x.qe)
        ]
        leaves = [t.requires_grad_() for t in whole if t is not None]
        wanted, got = torch.autograd.grad(loss(*whole), leaves), torch.autograd.grad(compiled(*whole), leaves)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted))
    assert counter.frame_count <= 2


@interpreted
def test_gradients_of_some_segments_through_a_compiled_read():
    torch._dynamo.reset()
    x = make_inputs(50, 3, batch=2, key_channels=6, value_channels=4)
    parts = [[t[..., :20].clone(), t[..., 20:].clone()] for t in x.read[:3]]
    leaves = [parts[0][1].requires_grad_(), parts[2][0].requires_grad_(), x.qe.requires_grad_()]

    def loss():
        return xmemk.memory_read(*parts, x.qk, x.qe, top_k=3, backend="triton").square().sum()

    wanted = torch.autograd.grad(loss(), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted))


@interpreted
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("token_major", [True, False])
@pytest.mark.parametrize("queries", [2, 0])
def test_operators_pass_opcheck(top_k, token_major, queries):
    x = make_inputs(40, queries, batch=2, objects=2, key_channels=4, value_channels=3, token_major=token_major)
    parts = [[t[..., :15].clone().requires_grad_(), t[..., 15:].clone().requires_grad_()] for t in x.read[:3]]
    qk, qe = x.qk.requires_grad_(), x.qe.requires_grad_()
    torch.library.opcheck(torch.ops.xmemk.memory_read_saving, (*parts, qk, qe, top_k, True))
    parts = [[t.detach() for t in part] for part in parts]
    readout, usage, weight, index = torch.ops.xmemk.memory_read_saving(*parts, qk.detach(), None, top_k, True)
    wanted = [True] * 6 + [True, False]
    gradients = (torch.randn_like(readout), torch.randn_like(usage))
    given = (*parts, qk.detach(), None, readout, weight, index, *gradients, wanted)
    torch.library.opcheck(torch.ops.xmemk.memory_read_backward, given)


NAMES = ("mk", "ms", "mv", "qk", "qe")


def expected_launches(names, top_k):
    """Of the backward's own kernels, by the gradients that are wanted."""
    of_tokens, of_queries, of_values = ("mk" in names or "ms" in names), ("qk" in names or "qe" in names), "mv" in names
    scores = of_tokens or of_queries
    if top_k is None:
        products = scores + of_tokens + of_queries + of_values
        return Counter({"score_gradients": int(scores), "multiply_parts": products})
    kernels = {"query_gradients": scores, "key_gradients": of_tokens, "value_gradients": of_values}
    return Counter({name: int(needed) for name, needed in kernels.items()})


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize(
    "wanted", [*((name,) for name in NAMES), ("mk", "mv"), ("mv", "qk"), ("mk", "ms", "qk", "qe")], ids="-".join
)
def test_only_the_gradients_that_are_wanted_are_computed(top_k, wanted):
    """Those are the same to the bit as among all."""
    from triton.runtime.interpreter import GridExecutor

    x = make_inputs(40, 3, objects=2, key_channels=5, value_channels=4, batch=2)
    launched = []
    run = GridExecutor.__call__

    def counted(self, *arguments, **options):
        launched.append(self.fn.__name__)
        return run(self, *arguments, **options)

    def gradients(names):
        given = {name: t.detach().clone() for name, t in zip(NAMES, x.read)}
        leaves = [given[name].requires_grad_() for name in names]
        readout, usage = xmemk.memory_read(**given, top_k=top_k, return_usage=True, backend="triton")
        g = torch.Generator().manual_seed(0)
        weigh = [torch.randn(t.shape, generator=g) for t in (readout, usage)]
        launched.clear()
        with mock.patch.object(GridExecutor, "__call__", counted):
            grads = torch.autograd.grad((readout, usage), leaves, weigh)
        own = Counter(name for name in launched if name.endswith("_gradients") or name == "multiply_parts")
        assert own == expected_launches(names, top_k)
        return dict(zip(names, grads))

    every = gradients(NAMES)
    for name, grad in gradients(wanted).items():
        assert torch.equal(grad, every[name])


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_gradient_that_is_one_number_in_memory(top_k):
    """That of a sum, which PyTorch expands with strides of 0."""
    x = make_inputs(60, 3, objects=2, key_channels=12, value_channels=7, batch=2)
    leaves = [t.requires_grad_() for t in x.read]
    out = xmemk.memory_read(*leaves, top_k=top_k, return_usage=True, backend="triton")
    whole = torch.autograd.grad(out, leaves, [torch.ones_like(t) for t in out], retain_graph=True)
    for _ in range(2):
        summed = torch.autograd.grad(out[0].sum() + out[1].sum(), leaves, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(summed, whole))


@interpreted
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize(("q", "more"), [(0, {}), (2, {"batch": 0}), (2, {"objects": 0}), (2, {"value_channels": 0})])
def test_where_there_is_nothing(top_k, q, more):
    x = make_inputs(30, q, **{"key_channels": 4, "value_channels": 3, **more})
    leaves = [t.requires_grad_() for t in x.read]
    out = xmemk.memory_read(*leaves, top_k=top_k, return_usage=True, backend="triton")
    grads = torch.autograd.grad(out[0].sum() + out[1].sum(), leaves)
    for grad, leaf in zip(grads, leaves):
        assert grad.shape == leaf.shape
        assert (grad.abs() < 1e-4).all()  # that of the sum of usage, which is always Q


@interpreted
def test_a_second_derivative_is_that_of_the_oracle():
    x = make_inputs(30, 2, key_channels=4, value_channels=3)
    x.qk.requires_grad_()

    def second(read):
        (first,) = torch.autograd.grad(read().square().sum(), [x.qk], create_graph=True)
        return torch.autograd.grad(first.sum(), [x.qk])[0]

    expected = second(lambda: xmemk.reference.memory_read(*x.read, top_k=2))
    got = second(lambda: xmemk.memory_read(*x.read, top_k=2, backend="triton"))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
