"""Prototype selection and eviction on the CPU beside what PyTorch offers: `python benchmarks/selection.py [--quick]`.

Each peer's answer is compared with the oracle's before it is timed. Medians; the order of the peers changes from repeat
to repeat, so that other work on the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import xmemk
from xmemk import reference

PROTOTYPES = 128

INPUTS: dict[str, Callable[[int], Tensor]] = {
    "random": lambda n: torch.rand(1, n),
    "ascending": lambda n: torch.arange(float(n)).view(1, n),
    "all equal": lambda n: torch.full((1, n), 0.5),
    "99 % zeros": lambda n: torch.where(torch.rand(1, n) < 0.99, 0.0, torch.rand(1, n)),
}


def peers(op: str, n: int) -> dict[str, Callable[[Tensor], Tensor]]:
    if op == "select_prototypes":
        return {
            "xmemk cpu": lambda u: xmemk.select_prototypes(u, PROTOTYPES, backend="cpu"),
            "xmemk torch": lambda u: xmemk.select_prototypes(u, PROTOTYPES, backend="torch"),
            "torch.topk": lambda u: u.topk(PROTOTYPES, dim=1).indices,
        }
    keep = n - PROTOTYPES
    return {
        "xmemk cpu": lambda u: xmemk.evict_lfu(u, keep, backend="cpu"),
        "xmemk torch": lambda u: xmemk.evict_lfu(u, keep, backend="torch"),
        "topk and sort": lambda u: u.topk(keep, dim=1, sorted=False).indices.sort(1).values,
    }


def right(op: str, usage: Tensor, index: Tensor) -> bool:
    """The same usage was chosen; which of equals, torch.topk leaves open."""
    count = PROTOTYPES if op == "select_prototypes" else usage.shape[1] - PROTOTYPES
    wanted = getattr(reference, op)(usage, count)
    return bool(torch.equal(usage.gather(1, index).sort(1).values, usage.gather(1, wanted).sort(1).values))


def median_times(functions: dict[str, Callable[[Tensor], Tensor]], usage: Tensor, repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            functions[name](usage)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 tokens only")
    sizes = (10_000,) if parser.parse_args().quick else (10_000, 100_000, 1_000_000)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; P = {PROTOTYPES}; microseconds (times ours)")
    for op in ("select_prototypes", "evict_lfu"):
        for n in sizes:
            for name, make in INPUTS.items():
                usage = make(n)
                functions = {k: f for k, f in peers(op, n).items() if right(op, usage, f(usage))}
                times = median_times(functions, usage, repeats=max(7, min(101, 3_000_000 // n)))
                ours = times["xmemk cpu"]
                cells = [f"{k} {1e6 * t:9.1f}" + (f" ({t / ours:5.1f})" if t != ours else "") for k, t in times.items()]
                print(f"{op:18} N={n:<9,} {name:10}  " + "  ".join(cells))


if __name__ == "__main__":
    main()
