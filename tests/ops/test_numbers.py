"""Numbers at the edges: what is not finite beside segments, keys whose squares overflow, keys in
two clusters, thousands of equal or of tiny weights.
"""

import pytest
import torch
from extension import CPU_BACKENDS

import xmemk
from xmemk import reference
from xmemk.testing import compare_consolidate, compare_read, make_inputs

NAN = float("nan")


def cut(t):
    return [t[..., :10], t[..., 10:10], t[..., 10:]]


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("token", [0, 9, 10, 19])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_value_at_the_edge_of_a_segment_spoils_who_selects_it_alone(backend, token, bad):
    g = torch.Generator().manual_seed(0)
    mk, qk, qe = (torch.randn(1, 8, n, generator=g) for n in (20, 6, 6))
    ms, mv = torch.ones(1, 1, 20), torch.randn(1, 1, 4, 20, generator=g)
    qe = qe.abs()
    mk[:, :, token] += 100
    mv[..., token] = bad
    inputs = [t.requires_grad_() for t in (mk, ms, mv, qk, qe)]
    whole = xmemk.memory_read(mk, ms, mv, qk, qe, top_k=3, backend=backend)
    parts = xmemk.memory_read(cut(mk), cut(ms), cut(mv), qk, qe, top_k=3, backend=backend)
    assert parts.isfinite().all()
    torch.testing.assert_close(parts, whole)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(parts.sum(), inputs))
    weight, index = xmemk.affinity_topk(mk, ms, qk, qe, top_k=3)
    for name in (backend, "torch"):
        assert xmemk.readout_topk(cut(mv.detach()), weight, index, backend=name).isfinite().all()
    readout = xmemk.readout_topk(cut(mv), weight, index, backend="torch")
    assert torch.autograd.grad(readout.sum(), mv)[0].isfinite().all()
    index = index.clone()
    index[0, 2, 1] = token  # selected: it shows there
    readout = xmemk.readout_topk(cut(mv.detach()), weight, index, backend=backend)
    assert (~readout.isfinite()).any(2)[0, 0].tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_a_scale_at_the_edge_of_a_segment(backend, kind):
    codes = torch.randint(-9, 9, (1, 2, 4, 20)).to(kind)
    scale = torch.rand(1, 2, 1, 20)
    scale[..., 9] = NAN
    weight, index = torch.rand(1, 5, 3), torch.randint(0, 9, (1, 5, 3))
    readout = xmemk.readout_topk(cut(codes), weight, index, scale=cut(scale), backend=backend)
    torch.testing.assert_close(
        readout, xmemk.readout_topk(codes[..., :9], weight, index, scale=scale[..., :9].contiguous(), backend="torch")
    )


@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "reference"])
@pytest.mark.parametrize("top_k", [5, 15, None])
@pytest.mark.parametrize("c", [1e15, 1e18, 2e19, 1e30])
def test_eq_2_is_read_as_written_where_its_expansion_overflows(c, top_k, backend):
    far = torch.arange(40) >= 15  # the larger cluster, where a median key lies
    mk = torch.where(far, -c, c) * torch.ones(1, 1, 40)
    mv = torch.where(far, -1.0, torch.arange(40.0)).view(1, 1, 1, 40)
    qk = torch.full((1, 1, 3), c)  # at distance 0 of tokens 0 .. 14, whose mean value is 7
    read, options = (reference.memory_read, {}) if backend == "reference" else (xmemk.memory_read, {"backend": backend})
    inputs = [t.requires_grad_() for t in (mk, mv, qk)]
    readout, usage = read(mk, None, mv, qk, None, top_k=top_k, return_usage=True, **options)
    torch.testing.assert_close(readout, torch.full((1, 1, 1, 3), 2.0 if top_k == 5 else 7.0))
    assert usage.sum().item() == pytest.approx(3)
    if backend == "torch":
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(readout.sum(), inputs))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(("n", "k"), [(500, 400), (3711, 2401), (20000, 15000)])
def test_thousands_of_weights_sum_to_1(n, k, backend):
    g = torch.Generator().manual_seed(0)
    mk, qk = (torch.randint(-3, 4, (1, 1, m), generator=g).float() for m in (n, 8))
    weight, _, usage = xmemk.affinity_topk(mk, None, qk, None, top_k=k, return_usage=True, backend=backend)
    assert (weight.double().sum(2) - 1).abs().max() < 1e-6
    assert abs(usage.double().sum() - 8) < 8e-6
    for top_k in (k, None):
        readout = xmemk.memory_read(mk, None, torch.ones(1, 1, 1, n), qk, None, top_k=top_k, backend=backend)
        assert (readout - 1).abs().max() < 1e-5


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("values", [torch.float32, torch.float16, torch.bfloat16])
def test_16_bits_of_everything(backend, dtype, values):
    x = make_inputs(60, 9, objects=2, key_channels=8, value_channels=5, dtype=dtype)
    ms, mv = x.ms.to(dtype), x.mv.to(values)
    exact = [t.double() for t in (x.mk, ms, mv, x.qk, x.qe)]
    for top_k in (7, None):
        inputs = [t.detach().requires_grad_() for t in (x.mk, ms, mv, x.qk, x.qe)]
        readout = xmemk.memory_read(*inputs, top_k=top_k, backend=backend)
        assert readout.dtype == values
        truth = reference.memory_read(*exact, top_k=top_k)
        torch.testing.assert_close(readout.double(), truth, rtol=2 * torch.finfo(values).eps, atol=2e-3)
        grads = torch.autograd.grad(readout.sum(), inputs)
        assert all(g.dtype == t.dtype and g.isfinite().all() for g, t in zip(grads, inputs))
    weight, index = xmemk.affinity_topk(x.mk, ms, x.qk, x.qe, top_k=7, backend=backend)
    narrow = xmemk.readout_topk(mv, weight.to(dtype), index, backend=backend)
    assert narrow.dtype == values
    wide = reference.readout_topk(mv.double(), weight.to(dtype).double(), index)
    torch.testing.assert_close(narrow.double(), wide, rtol=2 * torch.finfo(values).eps, atol=1e-3)
    usage = x.usage.to(dtype)
    for prototypes in xmemk.consolidate(x.mk, ms, x.me, mv, usage, 4, backend=backend):
        assert prototypes.isfinite().all()
    assert torch.equal(xmemk.evict_lfu(usage, 9, backend=backend), reference.evict_lfu(usage, 9))


def clusters(n, q, size, dtype):
    """Tokens 0 .. size - 1 and their like lie ten times farther from the rest than they spread."""
    x = make_inputs(n, q, key_channels=7, value_channels=3)
    distance = torch.where(torch.arange(n) < size, 5.0, -5.0)
    x.mk, x.qk = (x.mk + distance).to(dtype), (x.mk[..., -q:] + distance[-q:]).to(dtype)
    x.me, x.qe = x.me.to(dtype), x.qe.to(dtype)
    return x


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_prototypes_of_the_smaller_of_two_clusters(backend, seed):
    x = clusters(900, 1, 300, torch.bfloat16)
    g = torch.Generator().manual_seed(seed)
    x.me = torch.randint(0, 3, x.me.shape, generator=g).to(x.me)  # their products are exact in float32
    x.usage[:, torch.randperm(300, generator=g)[:6]] += 10
    parts = [cut(t) for t in (x.mk, x.ms, x.me, x.mv)]
    prototypes = xmemk.consolidate(*parts, x.usage, 6, backend=backend)
    compare_consolidate(x, 6, *prototypes).check()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_two_clusters_in_segments_of_unequal_length(backend):
    x = clusters(300, 20, 100, torch.float32)  # two of three segments lie in the smaller cluster
    parts = [[t[..., :10], t[..., 10:80], t[..., 80:]] for t in (x.mk, x.ms, x.mv)]
    readout, usage = xmemk.memory_read(*parts, x.qk, x.qe, return_usage=True, backend=backend)
    compare_read(x, readout, usage).check()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_large_weight_swallows_no_small_ones(backend):
    mk, qk = torch.full((1, 1, 256), 4.166), torch.zeros(1, 1, 5)
    mk[..., 0] = 0.0  # weight 1; the others' 3e-8 would each be rounded away beside it
    x = make_inputs(256, 5, key_channels=1, value_channels=2)
    x.mk, x.ms, x.mv, x.qk, x.qe = mk, None, torch.ones(1, 1, 2, 256), qk, None
    readout, usage = xmemk.memory_read(*x.read, return_usage=True, backend=backend)
    compare_read(x, readout, usage).check()
