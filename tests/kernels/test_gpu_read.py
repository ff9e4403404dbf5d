"""The public functions on an NVIDIA GPU, every backend that serves them: `pytest -m gpu`."""

import itertools

import pytest
import torch
from gpu import BACKENDS_OF, DEVICE, captured, gpu, no_waiting

import xmemk
from xmemk.testing import compare_read, compare_topk, compare_usage, make_inputs

pytestmark = gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [
    {"n": 1, "q": 1},
    {"n": 37, "q": 19, "objects": 3, "batch": 2, "value_channels": 33},
    {"n": 700, "q": 90, "objects": 2, "token_major": False},
    {"n": 500, "q": 64, "selection": False, "shrinkage": False, "key_channels": 17},
    {"n": 4099, "q": 257, "objects": 5},
]


def inputs(dtype=torch.float16, **shape):
    return make_inputs(**{"value_channels": 128, **shape}, dtype=dtype, device=DEVICE)


def served(function, backend, *arguments, **options):
    """Skips where this backend does not serve the call."""
    said = xmemk.explain(function, *arguments, backend=backend, **options)
    if said.chosen is None:
        pytest.skip(said.refusals[backend])


@pytest.mark.parametrize("backend", BACKENDS_OF["memory_read"])
@pytest.mark.parametrize("top_k", [None, 1, 30, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"N{shape['n']}")
def test_memory_read(backend, top_k, dtype, shape):
    x = inputs(dtype, **shape)
    served("memory_read", backend, *x.read, top_k=top_k)
    readout, usage = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
    assert readout.dtype == x.mv.dtype
    for compared in (compare_read(x, readout, top_k=top_k), compare_usage(x, usage, top_k)):
        assert compared.passed, str(compared)
    alone = xmemk.memory_read(*x.read, top_k=top_k, backend=backend)
    assert compare_read(x, alone, top_k=top_k).passed


@pytest.mark.parametrize("backend", BACKENDS_OF["memory_read"])
def test_float64(backend):
    x = inputs(torch.float64, n=300, q=40)
    served("memory_read", backend, *x.read, top_k=30)
    compared = compare_read(x, xmemk.memory_read(*x.read, top_k=30, backend=backend), top_k=30)
    assert compared.passed, str(compared)


@pytest.mark.parametrize("backend", BACKENDS_OF["affinity_topk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_affinity_and_readout(backend, dtype):
    x = inputs(dtype, n=2000, q=120, objects=2)
    served("affinity_topk", backend, x.mk, x.ms, x.qk, x.qe, top_k=30)
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=30, backend=backend)
    compared = compare_topk(x, weight, index, 30)
    assert compared.passed, str(compared)
    readout = xmemk.readout_topk(x.mv, weight, index, backend=backend)
    assert compare_read(x, readout, top_k=30).passed


@pytest.mark.parametrize("backend", BACKENDS_OF["memory_read"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_segments_read_as_one_memory(backend, top_k):
    x = inputs(n=1000, q=70, objects=2)
    cut = [0, 0, 123, 700, 1000]
    parts = [[t[..., a:b] for a, b in itertools.pairwise(cut)] if t is not None else None for t in (x.mk, x.ms, x.mv)]
    served("memory_read", backend, *parts, x.qk, x.qe, top_k=top_k)
    readout, usage = xmemk.memory_read(*parts, x.qk, x.qe, top_k=top_k, return_usage=True, backend=backend)
    for compared in (compare_read(x, readout, top_k=top_k), compare_usage(x, usage, top_k)):
        assert compared.passed, str(compared)


@pytest.mark.parametrize("top_k", [None, 30])
def test_results_do_not_change_from_run_to_run(top_k):
    x = inputs(n=5000, q=300, objects=2)
    served("memory_read", "triton", *x.read, top_k=top_k)
    first = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="triton")
    for _ in range(10):
        again = xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("backend", BACKENDS_OF["memory_read"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_nothing_waits_for_the_device(backend, top_k):
    x = inputs(n=5000, q=300, objects=2)
    served("memory_read", backend, *x.read, top_k=top_k)
    xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)  # compiles, allocates
    with no_waiting():
        xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS_OF["memory_read"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_a_graph_reads_what_its_inputs_hold(backend, top_k):
    x, other = inputs(n=3000, q=200, seed=0), inputs(n=3000, q=200, seed=1)
    served("memory_read", backend, *x.read, top_k=top_k)
    graph, (readout, usage) = captured(
        lambda: xmemk.memory_read(*x.read, top_k=top_k, return_usage=True, backend=backend)
    )
    for mine, its in zip(x.read, other.read):
        mine.copy_(its)
    graph.replay()
    for compared in (compare_read(other, readout, top_k=top_k), compare_usage(other, usage, top_k)):
        assert compared.passed, str(compared)


@pytest.mark.parametrize("top_k", [None, 30])
@pytest.mark.parametrize("token_major", [True, False])
def test_gradients_through_a_compiled_read(top_k, token_major):
    x = inputs(torch.float32, n=400, q=60, objects=2, token_major=token_major)
    leaves = [t.detach().requires_grad_() for t in x.read]
    served("memory_read", "triton", *leaves, top_k=top_k)

    def loss(*tensors):
        readout, usage = xmemk.memory_read(*tensors, top_k=top_k, return_usage=True, backend="triton")
        return readout.square().sum() + usage.square().sum()

    wanted = torch.autograd.grad(loss(*leaves), leaves)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for a, b in zip(got, wanted):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("top_k", [None, 30])
def test_the_gradient_of_a_sum(top_k):
    """PyTorch expands it, with strides of 0. That of all usage is 0, since usage adds up to Q."""
    x = inputs(torch.float32, n=400, q=60)
    leaves = [t.detach().requires_grad_() for t in x.read]
    served("memory_read", "triton", *leaves, top_k=top_k)
    readout, usage = xmemk.memory_read(*leaves, top_k=top_k, return_usage=True, backend="triton")
    both = torch.autograd.grad(readout.sum() + usage.sum(), leaves, retain_graph=True)
    for a, b in zip(both, torch.autograd.grad(readout.sum(), leaves)):
        assert (a - b).abs().max() <= 1e-3 * (1 + b.abs().max())


@pytest.mark.parametrize("top_k", [None, 30])
def test_strides_beyond_32_bits(top_k):
    x = inputs(n=500, q=40, key_channels=36)
    wanted = xmemk.memory_read(*x.read, top_k=top_k, backend="torch").float()
    step = 1 << 26
    if torch.cuda.mem_get_info()[0] < 3 * 2 * 36 * step:
        pytest.skip("too little memory for such a storage")
    far = torch.empty(36 * step, dtype=torch.float16, device=DEVICE).as_strided((1, 36, 500), (0, step, 1))
    x.mk = far.copy_(x.mk)
    served("memory_read", "triton", *x.read, top_k=top_k)
    got = xmemk.memory_read(*x.read, top_k=top_k, backend="triton").float()
    torch.testing.assert_close(got, wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_gradients_are_those_of_plain_pytorch_in_float64(backend, top_k):
    x = inputs(torch.float32, n=400, q=60, objects=2)

    def gradients(leaves, backend):
        leaves = [t.detach().requires_grad_() for t in leaves]
        if backend == "triton":
            served("memory_read", backend, *leaves, top_k=top_k)
        readout = xmemk.memory_read(*leaves, top_k=top_k, backend=backend)
        weigh = torch.linspace(-1, 1, readout.numel(), device=DEVICE, dtype=readout.dtype).view(readout.shape)
        return torch.autograd.grad((readout * weigh).sum(), leaves)

    for got, wanted in zip(gradients(x.read, backend), gradients(x.double().read, "torch")):
        assert (got.double() - wanted).norm() < 1e-4 * wanted.norm()
