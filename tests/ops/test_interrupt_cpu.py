"""Ctrl-C inside a long C++ read: a real signal, in a process of its own."""

import signal
import subprocess
import sys
import time

import pytest
from extension import needs_extension

CODE = """
import sys, time, torch, xmemk
torch.set_num_threads({threads})
g = torch.Generator().manual_seed(0)
mk, qk = torch.randn(1, {n}, 64, generator=g).transpose(1, 2), torch.randn(1, {q}, 64, generator=g).transpose(1, 2)
mv = torch.randn(1, 1, {n}, {cv}, generator=g).transpose(2, 3)
x = [mk, torch.ones(1, 1, {n}), mv, qk, None]
small = [x[0][..., :500], x[1][..., :500], x[2][..., :500], x[3][..., :90], None]
before = xmemk.memory_read(*small, top_k=30, backend="cpu"), xmemk.memory_read(*small, backend="cpu")
{prepare}
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
else:
    print("finished", flush=True)
after = xmemk.memory_read(*small, top_k=30, backend="cpu"), xmemk.memory_read(*small, backend="cpu")
print(all(torch.equal(a, b) for a, b in zip(before, after)))
"""

SIZES = {"n": 300_000, "q": 40_000, "cv": 8}  # minutes of work
CALLS = {
    "top-k": ("", 'xmemk.memory_read(*x, top_k=30, return_usage=True, backend="cpu")'),
    "top-k in float32": (
        'import xmemk._C; xmemk._C._pin_vector_set("portable")',
        'xmemk.affinity_topk(x[0], x[1], x[3], None, top_k=300, backend="cpu")',
    ),
    "dense": ("", 'xmemk.memory_read(*x, backend="cpu")'),
    "backward": (
        "y = [t.clone().requires_grad_() for t in (x[0], x[2], x[3])]; few = y[2][..., :900]\n"
        'r = xmemk.memory_read(y[0][..., :90_000], None, y[1][..., :90_000], few, None, backend="cpu")\n'
        "many = torch.randn_like(r)",
        "[torch.autograd.grad(r, y, many, retain_graph=True) for _ in range(1000)]",
    ),
    "readout": (
        "w, i = torch.full((1, 40_000, 3000), 1 / 3000), torch.randint(300_000, (1, 1, 3000)).expand(1, 40_000, 3000)",
        '[xmemk.readout_topk(x[2], w[:, :20_000], i[:, :20_000], backend="cpu") for _ in range(1000)]',
    ),
}


@needs_extension
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_a_signal_ends_a_read_soon(name, threads):
    prepare, call = CALLS[name]
    code = CODE.format(prepare=prepare, call=call, threads=threads, **SIZES)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        sent = time.time()
        words = child.stdout.readline().split()
        assert words[0] == "interrupted"
        assert float(words[1]) - sent < 2  # 0.1 s on an idle machine; minutes without a look at signals
        assert child.stdout.readline() == "True\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
