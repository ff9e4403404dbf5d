"""The C++ backward pass beside its peers, in one run: `python benchmarks/cpu_backward.py [--quick]`.

Peers: autograd through "tidy" PyTorch (one augmented product, torch.topk over the contiguous axis and embedding_bag, or
softmax and one product per object) and this package's plain backend. The gradients of each are compared with the C++
ones, and those with float64 on a small memory, before anything is timed. Rounds go through all peers in turn, so that
a busy machine slows them alike; medians are printed: forward and backward together, backward alone, and the peak of
memory of both beyond the inputs and the gradients themselves.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable

import torch
from cpu_read import tidy_dense, tidy_topk
from torch import Tensor

import xmemk
from xmemk import reference
from xmemk.demo.peak import Peak
from xmemk.testing import Inputs, make_inputs

QUERIES = 1_620


def peers(x: Inputs, k: int | None) -> dict[str, Callable[[], Tensor]]:
    def ours(backend: str) -> Callable[[], Tensor]:
        return lambda: xmemk.memory_read(*x.read, top_k=k, backend=backend)

    def tidy() -> Tensor:
        return (tidy_dense(x) if k is None else tidy_topk(x, k))[0]

    return {"xmemk cpu": ours("cpu"), "tidy": tidy, "xmemk torch": ours("torch")}


def gradients(read: Tensor, x: Inputs, upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(read, [t for t in x.read if t is not None], upstream)


def apart(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest number of that gradient."""
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(got, wanted))


def leaves(x: Inputs) -> Inputs:
    for t in x.read:
        if t is not None:
            t.requires_grad_()
    return x


def check_against_float64(objects: int, k: int | None) -> float:
    x = leaves(make_inputs(1_500, 100, objects=objects))
    exact = leaves(x.double())
    upstream = torch.randn(1, objects, 512, 100)
    truth = gradients(reference.memory_read(*exact.read, top_k=k), exact, upstream.double())
    return apart(gradients(xmemk.memory_read(*x.read, top_k=k, backend="cpu"), x, upstream), truth)


def table(n: int, q: int, objects: int, k: int | None, rounds: int) -> None:
    title = "dense" if k is None else f"top-{k}"
    print(f"\n{title}, N={n} Q={q} O={objects}, {torch.get_num_threads()} threads;", end=" ")
    print(f"largest error against float64 (N=1500): {check_against_float64(objects, k):.1e}")
    x = leaves(make_inputs(n, q, objects=objects))
    upstream = torch.randn(1, q, objects, 512).permute(0, 2, 3, 1)
    reads = peers(x, k)
    base = gradients(reads["xmemk cpu"](), x, upstream)
    size = sum(g.numel() * g.element_size() for g in base)
    difference, extra = {}, {}
    for name, read in reads.items():
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        with Peak(torch.device("cpu")) as peak:
            got = gradients(read(), x, upstream)
        extra[name] = "" if peak.bytes is None else f"{(peak.bytes - size) / 1e6:.0f}"
        difference[name] = apart(got, base)
        del got
    del base
    forward: dict[str, list[float]] = {name: [] for name in reads}
    backward: dict[str, list[float]] = {name: [] for name in reads}
    for i in range(rounds):
        for name, read in reads.items():
            if name == "xmemk torch" and i >= 2:
                continue
            start = time.perf_counter()
            out = read()
            middle = time.perf_counter()
            got = gradients(out, x, upstream)
            end = time.perf_counter()
            del out, got
            forward[name].append(middle - start)
            backward[name].append(end - middle)
    print(f"{'':14}{'both':>10}{'ratio':>7}{'backward':>12}{'ratio':>7}{'extra MB':>10}  differs")
    both = {name: statistics.median(map(sum, zip(forward[name], backward[name]))) for name in reads}
    alone = {name: statistics.median(backward[name]) for name in reads}
    for name in reads:
        ratios = both[name] / both["xmemk cpu"], alone[name] / alone["xmemk cpu"]
        print(
            f"{name:14}{1e3 * both[name]:7.1f} ms{ratios[0]:7.2f}{1e3 * alone[name]:9.1f} ms{ratios[1]:7.2f}"
            f"{extra[name]:>10}  {difference[name]:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the memory, few rounds")
    parser.add_argument("--only", choices=["topk", "dense"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[8_100, 24_580])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for n in [2_458] if options.quick else options.tokens:
        for objects in [1] if options.quick else options.objects:
            for mode in ["topk", "dense"] if options.only is None else [options.only]:
                k = 30 if mode == "topk" else None
                table(n, 405 if options.quick else QUERIES, objects, k, 3 if options.quick else options.rounds)


if __name__ == "__main__":
    main()
