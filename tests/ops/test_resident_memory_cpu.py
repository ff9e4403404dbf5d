"""Resident memory does not grow with the shapes that were read: no kernel is kept for a shape."""

import re
import sys

import pytest
from extension import needs_extension
from fresh import fresh

CODE = """
import gc, random, torch, xmemk
from pathlib import Path

torch.set_num_threads(1)
random.seed(0)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

def call():
    n, q, cv, ck = (random.randint(1, most) for most in (400, 60, 20, 40))
    x = [torch.randn(1, ck, n), torch.rand(1, 1, n), torch.randn(1, 2, cv, n)]
    x += [torch.randn(1, ck, q), torch.rand(1, ck, q)]
    {call}

for i in range(1000):
    call()
    if i == 100:
        gc.collect()
        before = resident()
gc.collect()
print(resident() - before)
"""

READ = 'xmemk.memory_read(*x, top_k={k}, return_usage=True, backend="cpu")'
GRADIENT = 'xmemk.memory_read(*(t.requires_grad_() for t in x), top_k={k}, backend="cpu").sum().backward()'


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux shows it")
@pytest.mark.parametrize(
    "call",
    [
        READ.format(k=None),
        READ.format(k="random.randint(1, 40)"),
        GRADIENT.format(k=None),
        GRADIENT.format(k="random.randint(1, 40)"),
        'xmemk.consolidate(x[0], x[1], x[0].abs(), x[2], x[1][:, 0], (n + 1) // 2, backend="cpu")',
    ],
    ids=["dense", "top-k", "dense, gradients", "top-k, gradients", "consolidate"],
)
def test_a_thousand_shapes_leave_nothing_behind(call):
    grown = float(re.findall(r"[-\d.e]+", fresh(CODE.replace("{call}", call)))[-1])
    assert grown < 5  # MB; a library that keeps a kernel for each shape takes 25 to 90
