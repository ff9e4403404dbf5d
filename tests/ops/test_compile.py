"""torch.compile: no graph breaks, and a memory that grows compiles twice at most."""

import pytest
import torch
from extension import needs_extension
from torch._dynamo.testing import CompileCounterWithBackend

import xmemk
from xmemk.testing import compare_close, make_inputs


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def growing(function, sizes, backend="aot_eager"):
    """Compares ``function(inputs)`` compiled and eager over memories of these sizes.

    -> the number of compilations
    """
    whole = make_inputs(max(sizes), 17, objects=2, value_channels=6)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for n in sizes:
        memory = [t[..., :n] for t in (whole.mk, whole.ms, whole.mv, whole.me, whole.usage)]
        got, wanted = compiled(*memory, whole.qk, whole.qe), function(*memory, whole.qk, whole.qe)
        for g, w in zip(got, wanted):
            assert g.dtype == w.dtype
            compare_close("compiled", g, w, 2e-5).check()
    return counter.frame_count


@pytest.mark.parametrize("top_k", [None, 5])
def test_memory_read_compiles_twice_for_any_number_of_sizes(top_k):
    def read(mk, ms, mv, me, usage, qk, qe):
        return xmemk.memory_read(mk, ms, mv, qk, qe, top_k=top_k, return_usage=True)

    # Once for the first size, once for all others.
    assert growing(read, range(20, 120, 9)) <= 2


def test_segments_of_growing_size():
    def read(mk, ms, mv, me, usage, qk, qe):
        cut = mk.shape[2] // 2
        mk, ms, mv = ([t[..., :cut], t[..., cut:]] for t in (mk, ms, mv))
        return xmemk.memory_read(mk, ms, mv, qk, qe, top_k=5, return_usage=True)

    assert growing(read, range(20, 120, 10)) <= 2


def test_the_other_functions():
    def upkeep(mk, ms, mv, me, usage, qk, qe):
        weight, index = xmemk.affinity_topk(mk, ms, qk, qe, top_k=5)
        return (
            weight,
            xmemk.readout_topk(mv, weight, index),
            xmemk.similarity(mk, ms, qk, qe),
            xmemk.select_prototypes(usage, 7),
            xmemk.evict_lfu(usage, 9),
            *xmemk.consolidate(mk, ms, me, mv, usage, 7),
        )

    assert growing(upkeep, range(20, 120, 9)) <= 2


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("top_k", [None, 6])
def test_gradients_through_a_compiled_read(top_k, backend):
    x = make_inputs(120, 9, objects=2, value_channels=4)
    counter = CompileCounterWithBackend("aot_eager")

    def loss(*a):
        readout, usage = xmemk.memory_read(*a, top_k=top_k, return_usage=True, backend=backend)
        return readout.square().sum() + usage.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for n in range(20, 120, 9):
        inputs = [t.detach().requires_grad_() for t in (*(t[..., :n] for t in x.read[:3]), x.qk, x.qe)]
        wanted, got = torch.autograd.grad(loss(*inputs), inputs), torch.autograd.grad(compiled(*inputs), inputs)
        for g, w in zip(got, wanted):
            compare_close("gradient", g, w, 1e-4 * w.abs().max().item()).check()
    assert counter.frame_count <= 2


def test_gradients_of_some_segments_through_a_compiled_read():
    x = make_inputs(50, 9, value_channels=4)
    parts = [[t[..., :20].clone(), t[..., 20:].clone()] for t in x.read[:3]]
    inputs = [parts[0][1].requires_grad_(), parts[2][0].requires_grad_(), x.qe.requires_grad_()]

    def loss():
        return xmemk.memory_read(*parts, x.qk, x.qe, top_k=6).square().sum()

    wanted = torch.autograd.grad(loss(), inputs)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), inputs)
    for g, w in zip(got, wanted):
        compare_close("gradient", g, w, 1e-4 * w.abs().max().item()).check()


def test_an_index_out_of_range_is_an_error_in_compiled_code_too():
    mv, weight = torch.rand(2, 1, 3, 40), torch.rand(2, 5, 4)
    index = torch.randint(40, (2, 5, 4))
    compiled = torch.compile(
        lambda v, w, i: xmemk.readout_topk(v, w, i, backend="torch"), fullgraph=True, backend="aot_eager"
    )
    compare_close("readout", compiled(mv, weight, index), xmemk.readout_topk(mv, weight, index), 1e-5).check()
    index[0, 2, 1] = 41  # in the flattened table this is a token of the other batch element
    with pytest.raises(RuntimeError, match="index"):
        compiled(mv, weight, index)


@pytest.mark.slow
def test_inductor():
    def read(mk, ms, mv, me, usage, qk, qe):
        return xmemk.memory_read(mk, ms, mv, qk, qe, top_k=5, return_usage=True)

    assert growing(read, (30, 45, 60), backend="inductor") <= 2


@pytest.mark.slow
def test_gradients_with_inductor():
    x = make_inputs(50, 9, value_channels=4)
    inputs = [t.requires_grad_() for t in x.read]

    def loss(*a):
        return xmemk.memory_read(*a, top_k=6).square().sum()

    wanted = torch.autograd.grad(loss(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*inputs), inputs)
    for g, w in zip(got, wanted):
        compare_close("gradient", g, w, 1e-4 * w.abs().max().item()).check()


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_pass_opcheck(dtype):
    usage = torch.rand(2, 30, dtype=dtype)
    index = torch.randint(30, (2, 5))
    torch.library.opcheck(torch.ops.xmemk.select_prototypes, (usage, 4))
    torch.library.opcheck(torch.ops.xmemk.evict_lfu, (usage, 12))
    torch.library.opcheck(torch.ops.xmemk.gather_tokens, (torch.rand(2, 3, 30, dtype=dtype), index))
    torch.library.opcheck(torch.ops.xmemk.gather_tokens, (torch.rand(2, 2, 3, 30, dtype=dtype), index))
    torch.library.opcheck(torch.ops.xmemk.gather_tokens, (torch.rand(2, 30, 3, dtype=dtype).transpose(1, 2), index))
