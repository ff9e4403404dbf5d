"""A C++ operator that gets too little memory raises, changes nothing and stays usable."""

import sys

import pytest
from extension import needs_extension
from fresh import fresh

pytestmark = [
    needs_extension,
    pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's memory is Linux's"),
]

# Threads and what torch loads on first use are there before the limit: that torch and OpenMP
# survive its lack is not ours to see to.
CODE = """
import re, resource, torch, xmemk
from pathlib import Path
from xmemk.testing import make_inputs

torch.set_num_threads(2)
small, large = (make_inputs(n, q, objects=2, value_channels=64) for n, q in ((300, 100), (8_000, 400)))
large.usage = large.usage.repeat(1, 75)

def gradients(x, top_k):
    inputs = [t.detach().requires_grad_() for t in x.read]
    out = xmemk.memory_read(*inputs, top_k=top_k, return_usage=True, backend="cpu")
    return torch.autograd.grad(out, inputs, [torch.ones_like(t) for t in out])

call = lambda x: {call}

def vm():
    return 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = call(small)
failed = passed = 0
for size in range(24, 57):
    resource.setrlimit(resource.RLIMIT_AS, (vm() + int(2 ** (size / 2)), resource.RLIM_INFINITY))
    try:
        call(large)
        passed += 1
    except (MemoryError, RuntimeError) as error:
        assert "alloc" in str(error), error
        failed += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert all(torch.equal(a, b) for a, b in zip(before, call(small)))
    if passed == 2:  # so would be all with more memory
        break
print(failed, passed)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        'xmemk.memory_read(*x.read, return_usage=True, backend="cpu")',
        'xmemk.memory_read(*x.read, top_k=30, return_usage=True, backend="cpu")',
        'xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=200, backend="cpu")',
        'xmemk.consolidate(x.mk, x.ms, x.me, x.mv, x.usage[:, :x.mk.shape[2]], 128, backend="cpu")',
        '[xmemk.select_prototypes(x.usage, x.usage.shape[1] // 2, backend="cpu")]',
        '[xmemk.evict_lfu(x.usage, x.usage.shape[1] // 2, backend="cpu")]',
        "gradients(x, None)",
        "gradients(x, 30)",
    ],
)
def test_too_little_memory_is_an_exception(call):
    failed, passed = map(int, fresh(CODE.replace("{call}", call)).split())
    assert failed >= 5
    assert passed >= 1
