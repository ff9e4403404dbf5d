"""consolidate: candidates in several segments, which are read as one memory; threads; gradients."""

import pytest
import torch
from extension import needs_extension

import xmemk
from xmemk import reference
from xmemk.testing import make_inputs


def cut(x, sizes):
    return None if x is None else list(x.split(sizes, dim=-1))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 0, 40], [0, 60], [7, 13, 25, 15]])
@pytest.mark.parametrize("missing", [(), ("ms",), ("me",)])
def test_segments_are_one_memory(backend, dtype, sizes, missing):
    x = make_inputs(60, 3, objects=2, value_channels=5, batch=2, dtype=dtype, seed=3)
    ms, me = (None if name in missing else getattr(x, name) for name in ("ms", "me"))
    arguments = [cut(t, sizes) for t in (x.mk, ms, me, x.mv)]
    pk, ps, pv = xmemk.consolidate(*arguments, x.usage, 9, backend=backend)
    whole = reference.consolidate(x.mk.double(), *(t if t is None else t.double() for t in (ms, me, x.mv)), x.usage, 9)
    assert torch.equal(pk.double(), whole[0])
    eps = torch.finfo(dtype).eps
    # Shrinkage, 1 to 10, is averaged in float32 at least.
    torch.testing.assert_close(ps.double(), whole[1], rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-4)
    torch.testing.assert_close(pv.double(), whole[2], rtol=0, atol=50 * eps)
    assert (pk.dtype, pv.dtype) == (dtype, dtype)
    assert ps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_no_prototypes_of_several_segments(backend):
    x = make_inputs(12, 3, value_channels=5)
    pk, ps, pv = xmemk.consolidate(*(cut(t, [5, 7]) for t in (x.mk, x.ms, x.me, x.mv)), x.usage, 0, backend=backend)
    assert pk.shape[2] == ps.shape[2] == pv.shape[3] == 0


def test_gradients_reach_every_segment():
    x = make_inputs(12, 3, value_channels=5, dtype=torch.float64)
    mk, mv = (cut(t.requires_grad_(), [5, 7]) for t in (x.mk, x.mv))
    _, _, pv = xmemk.consolidate(mk, cut(x.ms, [5, 7]), cut(x.me, [5, 7]), mv, x.usage, 4)
    pv.square().sum().backward()
    whole = make_inputs(12, 3, value_channels=5, dtype=torch.float64)
    whole.mk.requires_grad_(), whole.mv.requires_grad_()
    xmemk.consolidate(whole.mk, whole.ms, whole.me, whole.mv, whole.usage, 4)[2].square().sum().backward()
    torch.testing.assert_close(x.mk.grad, whole.mk.grad)
    torch.testing.assert_close(x.mv.grad, whole.mv.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    compiled = torch.compile(lambda *a: xmemk.consolidate(*a, 4), fullgraph=True, dynamic=True)
    for n in (12, 15):
        x = make_inputs(n, 3, value_channels=5)
        arguments = [cut(t, [5, n - 5]) for t in (x.mk, x.ms, x.me, x.mv)]
        for a, b in zip(compiled(*arguments, x.usage), xmemk.consolidate(*arguments, x.usage, 4), strict=True):
            torch.testing.assert_close(a, b)


@needs_extension
def test_consolidation_is_the_same_for_any_number_of_threads(threads):
    x = make_inputs(4000, 1, objects=2, value_channels=24)
    results = []
    for count in (1, 2, 7):
        threads(count)
        results.append(xmemk.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, 100, backend="cpu"))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r))
