"""Digests of a grid of results, to show that a change of structure changes no result.

    python tools/digests.py --save before.json       # before the change
    python tools/digests.py --against before.json    # after it: exit code 1 and what differs

Every case is a public call with seeded inputs; its digest is SHA-256 over shapes, types and bits of
what it returned. Digests are equal on the same machine and versions only. Cases of backend "triton"
run on the CPU, in a process of Triton's interpreter (--triton); `make aot` compares machine code.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
Case = tuple[str, Callable[[], Any]]


def digest(value: Any) -> str:
    """SHA-256 of tensors (shape, type, bits) and plain values, nested in any way."""
    found = hashlib.sha256()

    def take(x: Any) -> None:
        if isinstance(x, Tensor):
            x = x.detach().cpu().contiguous()
            found.update(f"{x.dtype}{list(x.shape)}".encode())
            found.update(x.view(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"")
        elif isinstance(x, (list, tuple)):
            found.update(b"(")
            for part in x:
                take(part)
            found.update(b")")
        else:
            found.update(repr(x).encode())

    take(value)
    return found.hexdigest()


def split(x: Tensor | None, sizes: tuple[int, ...]) -> Any:
    return x if x is None or not sizes else list(x.split(sizes, x.dim() - 1))


def read_cases(backend: str, sizes: tuple[tuple[int, int], ...], every: int = 1, channels: int = 64) -> Iterator[Case]:
    """Reads, gradients, affinities and readouts of one backend; every ``every``-th form."""
    import xmemk
    from xmemk.testing import make_inputs

    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    forms = list(itertools.product(sizes, dtypes, (True, False), (True, False), (1, 2)))[::every]
    for (n, q), dtype, with_s, with_e, objects in forms:
        name = f"{backend} N={n} Q={q} {dtype} s={with_s} e={with_e} O={objects}"
        x = make_inputs(
            n, q, batch=2 if objects == 2 else 1, objects=objects, key_channels=channels,
            value_channels=24, dtype=dtype, shrinkage=with_s, selection=with_e, token_major=objects == 1, seed=n + q,
        )  # fmt: skip
        segments = (n // 3, 0, n - n // 3) if objects == 2 else ()
        mk, ms, mv = (split(t, segments) for t in (x.mk, x.ms, x.mv))
        for top_k in (None, 8, n):

            def read(mk: Any = mk, ms: Any = ms, mv: Any = mv, x: Any = x, top_k: Any = top_k) -> Any:
                return xmemk.memory_read(mk, ms, mv, x.qk, x.qe, top_k=top_k, return_usage=True, backend=backend)

            def train(x: Any = x, top_k: Any = top_k) -> Any:
                leaves = [None if t is None else t.detach().requires_grad_() for t in x.read]
                readout, usage = xmemk.memory_read(*leaves, top_k=top_k, return_usage=True, backend=backend)  # type: ignore[call-overload]
                wanted = [t for t in leaves if t is not None]
                loss = readout.float().square().sum() + (usage * torch.arange(usage.shape[1])).sum()
                return torch.autograd.grad(loss, wanted)

            yield f"memory_read {name} k={top_k}", read
            if top_k != n:
                yield f"memory_read gradients {name} k={top_k}", train

        def affinity(mk: Any = mk, ms: Any = ms, mv: Any = mv, x: Any = x) -> Any:
            found = xmemk.affinity_topk(mk, ms, x.qk, x.qe, top_k=8, return_usage=True, backend=backend)
            return found, xmemk.readout_topk(mv, *found[:2], backend=backend)

        def consolidate(mk: Any = mk, ms: Any = ms, mv: Any = mv, x: Any = x, segments: Any = segments) -> Any:
            me = split(x.me, segments) if x.qe is not None else None
            return xmemk.consolidate(mk, ms, me, mv, x.usage, 16, backend=backend)

        yield f"affinity_topk, readout_topk {name}", affinity
        yield f"consolidate {name}", consolidate


def upkeep_cases(backend: str) -> Iterator[Case]:
    import xmemk

    for n, dtype in itertools.product((1, 300, 70_000), (torch.float32, torch.float16)):
        g = torch.Generator().manual_seed(n)
        usage = torch.rand(2, n, generator=g).mul(50).round().to(dtype)
        count = max(1, n // 7)
        for op in (xmemk.select_prototypes, xmemk.evict_lfu):
            yield f"{op.__name__} {backend} N={n} {dtype}", partial(op, usage, count, backend=backend)


def other_cases() -> Iterator[Case]:
    """Similarity, readouts of 8-bit values, the oracle, memories, and the whole network."""
    import xmemk
    from xmemk import reference
    from xmemk.testing import make_inputs

    x = make_inputs(200, 50, objects=2, value_channels=24)
    yield "similarity", lambda: xmemk.similarity(x.mk, x.ms, x.qk, x.qe)
    yield (
        "reference",
        lambda: [
            reference.memory_read(*x.read, top_k=8, return_usage=True),
            reference.memory_read(*x.read),
            reference.consolidate(x.mk, x.ms, x.me, x.mv, x.usage, 16),
            reference.evict_lfu(x.usage, 20),
        ],
    )
    weight, index = xmemk.affinity_topk(x.mk, x.ms, x.qk, x.qe, top_k=8)[:2]
    codes = (x.mv * 20).to(torch.int8)
    scale = torch.rand(1, 2, 3, 200, generator=torch.Generator().manual_seed(1))
    for backend in ("cpu", "torch"):
        read = partial(xmemk.readout_topk, codes, weight, index, scale=scale, backend=backend)
        yield f"readout_topk scaled {backend}", read
    for groups, stored, backend in itertools.product(("exact", "xmem"), (None, "int8"), ("cpu", "torch")):
        if groups == "exact" or stored is None:
            yield f"Memory {groups} {stored} {backend}", partial(memory_run, groups, stored, backend)
    yield "reference Memory", lambda: memory_run("exact", None, None)
    yield "Tracker", tracker_run


def memory_run(groups: str, stored: str | None, backend: str | None) -> Any:
    """40 frames with a late object, a removal, saving and loading."""
    import xmemk
    from xmemk import reference

    sizes: dict[str, Any] = {"max_mid_term_frames": 5, "min_mid_term_frames": 2, "num_prototypes": 8}
    config = xmemk.MemoryConfig(top_k=8, max_long_term_elements=40, groups=groups, value_dtype=stored, **sizes)
    memory: Any = xmemk.Memory(config, backend=backend) if backend else reference.Memory(config)
    g = torch.Generator().manual_seed(3)
    out: list[Any] = []
    for t in range(40):
        objects = [1, 2] if t < 12 else [1, 2, 3]
        objects = objects if t < 30 or groups == "xmem" else [1, 3]
        key, selection = torch.randn(1, 16, 4, 5, generator=g), torch.rand(1, 16, 4, 5, generator=g)
        if t == 30 and groups == "exact":
            memory.remove([2])
        if t:
            out.append(memory.read(key, selection))
        if t == 33 and backend:
            with tempfile.TemporaryDirectory() as folder:
                memory.save(Path(folder) / "memory")
                memory = xmemk.Memory.load(Path(folder) / "memory", backend=backend)
        value = torch.randn(1, len(objects), 24, 4, 5, generator=g)
        memory.add(key, 1 + torch.rand(1, 1, 4, 5, generator=g), value, objects, selection)
    return [*out, repr(memory)]


def tracker_run() -> Any:
    import xmemk

    folder = "tests/support" if (ROOT / "tests" / "support").is_dir() else "tests"
    sys.path.insert(0, str(ROOT / folder))
    import fixed_network as fixed

    config: dict[str, Any] = fixed.MEMORY
    network = xmemk.XMem().eval()
    network.load_state_dict(fixed.fixed_weights(network.state_dict()), strict=True)
    out = []
    for used in (network, network.tuned()):
        tracker = xmemk.Tracker(used, xmemk.MemoryConfig(**config))
        mask = torch.zeros(fixed.HEIGHT, fixed.WIDTH, dtype=torch.int64)
        mask[8:30, 10:30] = 1
        for t, image in enumerate(fixed.frames()[:30]):
            out.append(tracker.step(image, mask if t == 0 else mask * 2 if t == 9 else None))
    return out


def triton_cases() -> Iterator[Case]:
    """In a process of Triton's interpreter."""
    yield from read_cases("triton", ((300, 40),), every=3, channels=16)


def start_interpreter() -> None:
    """Lets backend "triton" serve CPU tensors, as the tests do."""
    folder = ROOT / "tests" / "support"
    sys.path.insert(0, str(folder if folder.is_dir() else ROOT / "tests"))
    import interpreter

    interpreter._start()


def run(cases: Iterator[Case]) -> dict[str, str]:
    torch.set_num_threads(2)
    found = {}
    for name, call in cases:
        try:
            found[name] = digest(call())
        except (ValueError, TypeError) as refused:  # a refusal is a result, whatever its wording
            found[name] = type(refused).__name__
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--save", type=Path, metavar="FILE")
    parser.add_argument("--against", type=Path, metavar="FILE")
    parser.add_argument("--triton", action="store_true", help="only backend triton, in its interpreter (minutes)")
    options = parser.parse_args()
    if options.triton and os.environ.get("TRITON_INTERPRET") != "1":
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        return subprocess.call([sys.executable, __file__, *sys.argv[1:]], env=environment)
    found: dict[str, str] = {}
    if options.triton:
        start_interpreter()
        found |= run(triton_cases())
    else:
        for backend in ("cpu", "torch"):
            found |= run(read_cases(backend, ((700, 90), (37, 5), (2000, 200))))
            found |= run(upkeep_cases(backend))
        found |= run(other_cases())
    print(f"{len(found)} cases")
    if options.save:
        options.save.write_text(json.dumps(found, indent=0) + "\n")
    if options.against:
        before = json.loads(options.against.read_text())
        different = [name for name in before if found.get(name) != before[name]]
        print("\n".join(different) or "all equal")
        return int(bool(different))
    return 0


if __name__ == "__main__":
    sys.exit(main())
