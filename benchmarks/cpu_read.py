"""The C++ memory read beside its peers, in one run: `python benchmarks/cpu_read.py [--quick]`.

Peers: the original's formulation, "tidy" PyTorch (one augmented product, torch.topk over the contiguous axis,
embedding_bag; dense: softmax and one product), this package's plain backend, for the dense read
scaled_dot_product_attention on augmented keys (which gives no usage). Each is checked against float64 on some queries
before it is timed. Rounds go through all peers in turn, so that a busy machine slows them alike; medians are printed,
and the peak of memory beyond the inputs. The last line of each table is the similarity product alone, by torch.mm.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import xmemk
from xmemk.demo import original
from xmemk.demo.peak import Peak
from xmemk.testing import Inputs, compare_read, make_inputs

Read = Callable[[], tuple[Tensor, Tensor | None]]


def augmented(x: Inputs) -> tuple[Tensor, Tensor]:
    """Memory operand [N, 2 CK + 1] and query operand [Q, 2 CK + 1], whose product is the similarity."""
    assert x.ms is not None and x.qe is not None
    k, q, e = (t[0].T for t in (x.mk, x.qk, x.qe))
    s = x.ms[0].T / math.sqrt(k.shape[1])
    memory = torch.cat([-s * k * k, 2 * s * k, -s], 1)
    return memory, torch.cat([e, e * q, (e * q * q).sum(1, keepdim=True)], 1)


def tidy_topk(x: Inputs, k: int) -> tuple[Tensor, Tensor]:
    memory, query = augmented(x)
    best, index = (query @ memory.T).topk(k, dim=1)
    weight = best.softmax(1)
    usage = weight.new_zeros(memory.shape[0]).scatter_add_(0, index.flatten(), weight.flatten())
    read = [
        torch.nn.functional.embedding_bag(index, v.T.contiguous(), mode="sum", per_sample_weights=weight).T
        for v in x.mv[0]
    ]
    return torch.stack(read)[None], usage[None]


def tidy_dense(x: Inputs) -> tuple[Tensor, Tensor]:
    memory, query = augmented(x)
    affinity = (query @ memory.T).softmax(1)
    return torch.stack([(affinity @ v.T).T for v in x.mv[0]])[None], affinity.sum(0)[None]


def sdpa_dense(x: Inputs) -> tuple[Tensor, None]:
    memory, query = augmented(x)
    read = [
        torch.nn.functional.scaled_dot_product_attention(query[None], memory[None], v.T[None], scale=1.0)[0].T
        for v in x.mv[0]
    ]
    return torch.stack(read)[None], None


def original_read(x: Inputs, k: int) -> tuple[Tensor, Tensor]:
    assert x.ms is not None and x.qe is not None
    return original.memory_read([x.mk], [x.ms], [x.mv], x.qk, x.qe, top_k=k)


def peers(x: Inputs, k: int | None) -> dict[str, Read]:
    def ours(backend: str) -> Read:
        return lambda: xmemk.memory_read(*x.read, top_k=k, return_usage=True, backend=backend)

    found: dict[str, Read] = {"xmemk cpu": ours("cpu")}
    if k is None:
        found |= {"tidy": lambda: tidy_dense(x), "sdpa (no usage)": lambda: sdpa_dense(x)}
    else:
        found |= {"tidy": lambda: tidy_topk(x, k), "original": lambda: original_read(x, k)}
    return found | {"xmemk torch": ours("torch")}


def checked(read: Read, x: Inputs, k: int | None) -> tuple[str, str]:
    """The verdict on a read's result, and the MB it took at its peak."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would hide what this one takes
    with Peak(torch.device("cpu")) as peak:
        readout, usage = read()
    extra = "" if peak.bytes is None else f"{peak.bytes / 1e6:.0f}"
    picked = torch.linspace(0, x.qk.shape[2] - 1, 40).long()
    some = Inputs(x.mk, x.ms, x.mv, x.qk[..., picked], x.qe[..., picked] if x.qe is not None else None, x.me, x.usage)
    compared = compare_read(some, readout[..., picked], top_k=k)
    total = x.qk.shape[2] if usage is None else float(usage.sum())
    right = compared.passed and abs(total - x.qk.shape[2]) < 1e-3 * x.qk.shape[2]
    return f"{'ok' if right else 'WRONG'} {compared.error:.1e}", extra


def table(title: str, x: Inputs, k: int | None, rounds: int, slow_rounds: int) -> None:
    print(f"\n{title}, {torch.get_num_threads()} threads")
    reads = peers(x, k)
    verdict = {name: checked(read, x, k) for name, read in reads.items()}
    memory, query = augmented(x)
    scores = torch.empty(query.shape[0], memory.shape[0])
    products: dict[str, Callable[[], object]] = {"similarity product": lambda: torch.mm(query, memory.T, out=scores)}
    seconds: dict[str, list[float]] = {name: [] for name in (*reads, *products)}
    for i in range(rounds):
        for name, call in (*reads.items(), *products.items()):
            if i >= slow_rounds and name in ("original", "xmemk torch", "sdpa (no usage)"):
                continue
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(seconds["xmemk cpu"])
    print(f"{'':20}{'median':>10}{'min':>10}{'ratio':>8}{'extra MB':>10}  error")
    for name in seconds:
        said, extra = verdict.get(name, ("", ""))
        median = statistics.median(seconds[name])
        print(
            f"{name:20}{1e3 * median:7.1f} ms{1e3 * min(seconds[name]):7.1f} ms{median / base:8.2f}{extra:>10}  {said}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the memory, few rounds")
    parser.add_argument("--only", choices=["topk", "dense", "1080p"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    n, q, rounds = (2_458, 405, 3) if options.quick else (24_580, 1_620, 9)
    wanted = [options.only] if options.only else ["topk", "dense"] + ([] if options.quick else ["1080p"])
    if "topk" in wanted:
        for objects in (1,) if options.quick else (1, 5):
            x = make_inputs(n, q, objects=objects)
            table(f"top-30, N={n} Q={q} O={objects}, with usage", x, 30, rounds, 3)
    if "dense" in wanted:
        table(f"dense, N={n} Q={q} O=1, with usage", make_inputs(n, q), None, rounds, 3)
    if "1080p" in wanted:
        table("top-30, N=83440 Q=8160 O=1, with usage", make_inputs(83_440, 8_160), 30, 3, 1)


if __name__ == "__main__":
    main()
