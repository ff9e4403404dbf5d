"""potentiate: Eq. 3 alone, as an operator and in plain PyTorch.

test_consolidate.py has it after the selection.
"""

import pytest
import torch
from extension import needs_extension

from xmemk import operators, plain, reference
from xmemk.inputs import MemoryInputs, QueryInputs
from xmemk.testing import make_inputs


def segments(x):
    return [None if t is None else [t[..., :9], t[..., 9:]] for t in (x.mk, x.ms, x.mv)]


@pytest.mark.parametrize("backend", [pytest.param(operators, marks=needs_extension, id="cpu"), plain])
@pytest.mark.parametrize("shrinkage", [True, False])
def test_it_is_the_read_of_shrinkage_and_values(backend, shrinkage):
    x = make_inputs(40, 7, objects=2, value_channels=5, batch=2, shrinkage=shrinkage)
    ps, pv = backend.potentiate(MemoryInputs(*segments(x)), QueryInputs(x.qk, x.qe))
    exact = x.double()
    ms = torch.ones_like(exact.mk[:, :1]) if exact.ms is None else exact.ms
    average = reference.memory_read(exact.mk, exact.ms, ms.unsqueeze(1), exact.qk, exact.qe)
    torch.testing.assert_close(ps.double(), average[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pv.double(), reference.memory_read(*exact.read), rtol=1e-5, atol=1e-5)
    assert ps.dtype == torch.float32


@needs_extension
@pytest.mark.parametrize("shrinkage", [True, False])
def test_the_operator_passes_opcheck(shrinkage):
    x = make_inputs(40, 7, objects=2, value_channels=5, batch=2, shrinkage=shrinkage)
    mk, ms, mv = segments(x)
    torch.library.opcheck(torch.ops.xmemk.potentiate, (mk, ms or [], mv, x.qk, x.qe))
