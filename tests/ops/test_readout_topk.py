"""readout_topk: Eq. 1 over selected tokens.

That with a scale is tested in memory/test_memory_scaled.py.
"""

import pytest
import torch
from extension import CPU_BACKENDS, needs_extension

import xmemk
from xmemk.testing import make_inputs


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    return request.param


def test_top_k_read_in_two_steps(backend):
    x = make_inputs(120, 25, objects=3, value_channels=6, batch=2)
    readout, usage = xmemk.memory_read(*x.read, top_k=11, return_usage=True, backend=backend)
    weight, index, used = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=11, return_usage=True, backend=backend)
    assert (weight.diff(dim=2) <= 0).all()
    assert torch.equal(xmemk.readout_topk(x.mv, weight, index, backend=backend), readout)
    assert torch.equal(used, usage)


@needs_extension
def test_an_index_out_of_bounds():
    mv, weight = torch.rand(1, 1, 4, 10), torch.rand(1, 2, 3)
    for bad in (-1, 10):
        index = torch.tensor([[[0, 1, 2], [3, bad, 4]]])
        with pytest.raises(IndexError, match=f"wanted 0 to 9.*got {bad}"):
            xmemk.readout_topk(mv, weight, index, backend="cpu")


def test_it_is_differentiable():
    x = make_inputs(40, 13, objects=2, key_channels=6, value_channels=5, batch=2, dtype=torch.float64)
    x.mk.requires_grad_(), x.mv.requires_grad_()
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=5)
    assert not weight.requires_grad
    weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: xmemk.readout_topk(v, w, index), (x.mv, weight))


@needs_extension
def test_the_operator_passes_opcheck():
    x = make_inputs(40, 7, objects=2, value_channels=5, batch=2)
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=5)
    torch.library.opcheck(torch.ops.xmemk.readout_topk, ([x.mv[..., :9], x.mv[..., 9:]], weight, index))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("sizes", [(7,), (2, 5), (3, 0, 4)])
def test_values_of_eight_bits_in_segments(backend, dtype, sizes):
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(-100, 100, (2, 3, 130, n), generator=generator).to(dtype) for n in sizes]
    scales = [torch.rand(2, 3, 2, n, generator=generator) for n in sizes]
    weight, index = torch.rand(2, 6, 4, generator=generator), torch.randint(0, 7, (2, 6, 4), generator=generator)
    wide = torch.cat(codes, 3).float() * torch.cat(scales, 3).repeat_interleave(65, 2)
    got = xmemk.readout_topk(codes, weight, index, scale=scales, backend=backend)
    torch.testing.assert_close(got, xmemk.reference.readout_topk(wide, weight, index), rtol=1e-5, atol=1e-3)
