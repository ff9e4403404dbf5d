"""Derivatives of every function on every backend: second order, forward mode, torch.func, autocast,
checkpoints, hooks. The measure is the oracle under plain autograd, in float64.
"""

import pytest
import torch
from extension import CPU_BACKENDS as BACKENDS
from torch import func

import xmemk
from xmemk import reference
from xmemk.testing import make_inputs

NAMES = ("mk", "ms", "mv", "qk", "qe")


@pytest.fixture
def x():
    return make_inputs(14, 5, objects=2, key_channels=4, value_channels=3, batch=2, dtype=torch.float64)


def cut(t):
    return [t[..., :5], t[..., 5:5], t[..., 5:]]


def functions(x, backend=None, segments=False):
    """name -> (a function of float tensors, those tensors); of the oracle where backend is None."""
    of, options = (reference, {}) if backend is None else (xmemk, {"backend": backend})
    memory = cut if segments and backend is not None else lambda t: t
    index = reference.affinity_topk(x.mk.double(), x.ms.double(), x.qk.double(), x.qe.double(), top_k=4)[1]
    weight = torch.rand(index.shape, generator=torch.Generator().manual_seed(2)).to(x.mk.dtype)

    def read(top_k):
        def function(mk, ms, mv, qk, qe):
            parts = memory(mk), memory(ms), memory(mv)
            readout, usage = of.memory_read(*parts, qk, qe, top_k=top_k, return_usage=True, **options)
            return torch.cat([readout.flatten(), usage.flatten().to(readout.dtype)])

        return function, x.read

    def consolidated(mk, ms, me, mv):
        if backend is None:
            parts = of.consolidate(mk, ms, me, mv, x.usage, 3)
        else:
            parts = of.consolidate(memory(mk), memory(ms), memory(me), memory(mv), x.usage, 3, **options)
        return torch.cat([p.flatten() for p in parts])

    return {
        "dense": read(None),
        "topk": read(6),
        "readout_topk": (lambda mv, w: of.readout_topk(memory(mv), w, index, **options), (x.mv, weight)),
        "similarity": (
            lambda mk, ms, qk, qe: of.similarity(memory(mk), memory(ms), qk, qe, **options),
            (x.mk, x.ms, x.qk, x.qe),
        ),
        "consolidate": (consolidated, (x.mk, x.ms, x.me, x.mv)),
    }


OPS = ("dense", "topk", "readout_topk", "similarity", "consolidate")


def loss(function):
    return lambda *a: function(*a).double().square().sum()


def second_order(function, inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    grads = torch.autograd.grad(loss(function)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.double().square().sum() for g in grads), leaves)


def agree(got, truth, tolerance):
    for g, t in zip(got, truth):
        assert g.shape == t.shape
        assert (g.double() - t).abs().max() <= tolerance * t.abs().max().clamp_min(1e-6)


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives(x, op):
    truth = second_order(*functions(x)[op])
    agree(second_order(*functions(x, "torch", segments=True)[op]), truth, 1e-9)
    agree(second_order(*functions(x, "auto")[op]), truth, 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["dense", "topk"])
def test_second_derivatives_of_a_float32_read(x, op, backend):
    truth = second_order(*functions(x)[op])
    x32 = make_inputs(14, 5, objects=2, key_channels=4, value_channels=3, batch=2)
    agree(second_order(*functions(x32, backend, segments=True)[op]), truth, 2e-4)


@pytest.mark.parametrize("op", OPS)
def test_transforms_of_torch_func(x, op):
    function, inputs = functions(x, "torch", segments=True)[op]
    truth, _ = functions(x)[op]
    tangents = tuple(torch.randn_like(t) for t in inputs)
    every = tuple(range(len(inputs)))
    agree([func.jvp(function, inputs, tangents)[1]], [func.jvp(truth, inputs, tangents)[1]], 1e-9)
    for transform in (func.grad, func.jacrev, func.jacfwd):
        f, t = (loss(function), loss(truth)) if transform is func.grad else (function, truth)
        agree(transform(f, argnums=every)(*inputs), transform(t, argnums=every)(*inputs), 1e-9)
    wanted = func.hessian(loss(truth), argnums=0)(*inputs)
    agree([func.hessian(loss(function), argnums=0)(*inputs)], [wanted], 1e-9)
    batch = tuple(torch.stack([t, t.flip(0)]) for t in inputs)
    agree([func.vmap(function)(*batch)], [torch.stack([truth(*(t[i] for t in batch)) for i in (0, 1)])], 1e-9)
    # Gradients of each sample, with memory that all of them share.
    some = (batch[0], *inputs[1:])
    dims = (0, *[None] * (len(inputs) - 1))
    got = func.vmap(func.grad(loss(function)), dims)(*some)
    agree([got], [torch.stack([func.grad(loss(truth))(batch[0][i], *inputs[1:]) for i in (0, 1)])], 1e-9)


def test_forward_mode_without_transforms(x):
    from torch.autograd import forward_ad

    tangent = torch.randn_like(x.qk)
    for op in ("dense", "topk"):
        results = []
        for function, inputs in (functions(x, "auto")[op], functions(x)[op]):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(inputs[3], tangent)
                results.append(forward_ad.unpack_dual(function(*inputs[:3], dual, inputs[4])).tangent)
        agree(results[:1], results[1:], 1e-9)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "torch"])
def test_what_a_backend_lacks_is_said_and_the_advice_holds(backend):
    x = make_inputs(14, 5, value_channels=3)

    def read(qk, name):
        return xmemk.memory_read(x.mk, x.ms, x.mv, qk, x.qe, top_k=4, backend=name).sum()

    transforms = {
        "grad": lambda name: func.grad(lambda qk: read(qk, name))(x.qk),
        "vmap": lambda name: func.vmap(lambda qk: read(qk, name))(x.qk[None]),
        "jvp": lambda name: func.jvp(lambda qk: read(qk, name), (x.qk,), (x.qk,))[1],
    }
    for transform in transforms.values():
        with pytest.raises(ValueError, match=r"no torch.func transforms.*Would do: 'torch'"):
            transform(backend)
        assert torch.equal(transform("torch"), transform("auto"))


def test_functions_without_derivatives_under_vmap(x):
    batch = [torch.stack([t, t.flip(-1)]) for t in (x.mk, x.usage)]
    got = func.vmap(lambda mk, usage: xmemk.affinity_topk(mk, x.ms, x.qk, x.qe, top_k=3)[:2])(*batch)
    for i in (0, 1):
        weight, index = xmemk.affinity_topk(batch[0][i], x.ms, x.qk, x.qe, top_k=3)[:2]
        assert torch.equal(got[1][i], index)
        torch.testing.assert_close(got[0][i], weight)
    for op in (xmemk.select_prototypes, xmemk.evict_lfu):
        chosen = func.vmap(lambda usage, op=op: op(usage, 4))(batch[1])
        assert torch.equal(chosen, torch.stack([op(u, 4) for u in batch[1]]))


def test_an_affinity_is_differentiable_in_nothing(x):
    tangent = func.jvp(
        lambda qk: xmemk.affinity_topk(x.mk, x.ms, qk, x.qe, top_k=3)[0], (x.qk,), (torch.ones_like(x.qk),)
    )[1]
    assert (tangent == 0).all()
    assert not xmemk.affinity_topk(x.mk, x.ms, x.qk.requires_grad_(), x.qe, top_k=3)[0].requires_grad


@pytest.mark.parametrize(
    ("backend", "narrow"), [("torch", torch.bfloat16), ("torch", torch.float16), ("auto", torch.bfloat16)]
)
@pytest.mark.parametrize("op", OPS)
def test_gradients_under_autocast_are_those_without(op, backend, narrow):
    x = make_inputs(40, 6, key_channels=8, value_channels=3)
    function, inputs = functions(x, backend, segments=True)[op]
    leaves = [t.detach().requires_grad_() for t in inputs]

    def gradients(create_graph=False):
        return torch.autograd.grad(loss(function)(*leaves), leaves, create_graph=create_graph)

    plain, plain_with_graph = gradients(), gradients(create_graph=True)
    with torch.autocast("cpu", narrow):
        assert all(torch.equal(g, p) for g, p in zip(gradients(), plain))
        agree(gradients(create_graph=True), [p.double() for p in plain_with_graph], 1e-6)
        if backend == "torch" and narrow == torch.bfloat16:
            got = func.grad(loss(function), argnums=tuple(range(len(inputs))))(*inputs)
            agree(got, [p.double() for p in plain], 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [None, 6])
def test_checkpoints_hooks_and_one_tensor_in_two_places(x, top_k, backend):
    from torch.utils.checkpoint import checkpoint

    x = make_inputs(14, 14, objects=2, key_channels=4, value_channels=3)

    def read(mk, mv, qe):
        return xmemk.memory_read(mk, x.ms, mv, mk, qe, top_k=top_k, backend=backend).square().sum()

    leaves = [t.detach().requires_grad_() for t in (x.mk, x.mv, x.qe)]
    plain = torch.autograd.grad(read(*leaves), leaves)
    truth = [t.detach().double().requires_grad_() for t in leaves]
    mk, mv, qe = truth
    readout = reference.memory_read(mk, x.ms.double(), mv, mk, qe, top_k=top_k)
    agree(plain, torch.autograd.grad(readout.square().sum(), truth), 1e-4)
    got = torch.autograd.grad(checkpoint(read, *leaves, use_reentrant=False), leaves)
    assert all(torch.equal(g, p) for g, p in zip(got, plain))
    with torch.autograd.graph.save_on_cpu():
        assert all(torch.equal(g, p) for g, p in zip(torch.autograd.grad(read(*leaves), leaves), plain))
        grads = torch.autograd.grad(read(*leaves), leaves, create_graph=True)
    agree(grads, [p.double() for p in plain], 1e-5)


def test_gradgradcheck():
    x = make_inputs(3, 2, key_channels=2, value_channels=1, dtype=torch.float64)
    inputs = [t.contiguous().requires_grad_() for t in x.read]
    for top_k in (None, 2):
        function = lambda *a, k=top_k: xmemk.memory_read(*a, top_k=k, return_usage=True)  # noqa: E731
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=True)


def test_a_token_that_is_not_read_spoils_no_second_derivative(x):
    with torch.no_grad():
        x.mk[0, 2, 5] = float("nan")
        x.ms[1, 0, 6] = float("inf")
    for op in ("dense", "topk"):
        function, inputs = functions(x, "torch", segments=True)[op]
        assert all(g.isfinite().all() for g in second_order(function, inputs))
