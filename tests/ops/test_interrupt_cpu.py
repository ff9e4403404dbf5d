"""Ctrl-C inside a long C++ read: a real signal, in a process of its own."""

import sys

import pytest
from extension import needs_extension
from fresh import fresh

CODE = """
import os, signal, threading, time, torch, xmemk
import xmemk._C

signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads({threads})
xmemk._C._pin_vector_set("{vectors}")
n, q = 100_000, 60_000
mk, qk, mv = torch.randn(1, n, 64).transpose(1, 2), torch.randn(1, q, 64).transpose(1, 2), torch.randn(1, 1, 8, n)
x = [mk, None, mv, qk, None]
few = [mk[..., :500], None, mv[..., :500], qk[..., :90], None]

def small():
    return [xmemk.memory_read(*few, top_k=k, backend="cpu") for k in (30, None)]

before = small()
{prepare}
sent = []

def interrupt():
    time.sleep(0.2)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    {call}
except KeyboardInterrupt:
    print(time.perf_counter() - sent[0])
assert all(torch.equal(a, b) for a, b in zip(before, small()))
"""

BACKWARD = """
y = [t.clone().requires_grad_() for t in (mk[..., :90_000], mv[..., :90_000], qk[..., :500])]
r = xmemk.memory_read(y[0], None, y[1], y[2], None, backend="cpu")
"""
READOUT = "w, i = torch.full((1, 3000, 3000), 1 / 3000), torch.randint(n, (1, 1, 3000)).expand(1, 3000, 3000)"

CASES = {
    "top-k": (1, "", "", 'xmemk.memory_read(*x, top_k=30, return_usage=True, backend="cpu")'),
    "top-k, float32": (2, "portable", "", 'xmemk.affinity_topk(mk, None, qk, None, top_k=300, backend="cpu")'),
    "dense": (2, "", "", 'xmemk.memory_read(*x, return_usage=True, backend="cpu")'),
    "saving": (1, "", "", 'xmemk.memory_read(mk.requires_grad_(), *x[1:], top_k=30, backend="cpu")'),
    "backward": (2, "", BACKWARD, "for _ in range(1000): torch.autograd.grad(r.sum(), y, retain_graph=True)"),
    "readout": (1, "", READOUT, 'for _ in range(1000): xmemk.readout_topk(mv, w, i, backend="cpu")'),
    "consolidate": (
        2, "", "", 'xmemk.consolidate(mk, None, None, mv, torch.rand(1, n), 50_000, backend="cpu")',
    ),
}  # fmt: skip


@needs_extension
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("name", CASES)
def test_a_signal_ends_a_read_soon(name):
    threads, vectors, prepare, call = CASES[name]
    seconds = fresh(CODE.format(threads=threads, vectors=vectors, prepare=prepare, call=call))
    assert float(seconds) < 2  # 0.1 on an idle machine; many seconds without a look at signals
