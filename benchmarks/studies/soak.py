"""make soak: a memory that never grows, watched. Small frames, 100,000 reads, a memory frame after
every second.

Two objects from the start, one that joins and leaves again every 5,000 reads. Consolidation and
eviction happen all the time; once the first eviction is over, resident memory must stay where it
is, to 1 %. Writes the curve to out/soak.csv and, where matplotlib is there, out/soak.png. Exit code
1 where it grew.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from xmemk.benchmarks.harness.timing import Tell, silent
from xmemk.benchmarks.report import terminal

import xmemk
from xmemk.measure.peak import resident_bytes

CK, CV, H, W = 16, 32, 6, 8
CONFIG = xmemk.MemoryConfig(
    max_mid_term_frames=5, min_mid_term_frames=2, num_prototypes=24, max_long_term_elements=400, hidden_dim=0
)
ALLOWED = 0.01  # growth from the first eviction to the end
FILMS = 64  # frames that are made once and shown again and again


def soak(
    reads: int, groups: str, samples: int = 200, say: Tell = silent
) -> tuple[list[tuple[int, float]], int, xmemk.Memory]:
    """(reads, resident MB) from time to time, the first eviction's read, and the memory."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(FILMS, 1, CK, H, W, generator=generator)
    values = torch.randn(FILMS, 1, 3, CV, H, W, generator=generator)
    shrinkage = 1 + torch.rand(FILMS, 1, 1, H, W, generator=generator)
    selection = torch.rand(FILMS, 1, CK, H, W, generator=generator)
    memory = xmemk.Memory(xmemk.MemoryConfig(**vars(CONFIG) | {"groups": groups}))
    curve, first_eviction = [], 0
    for t in range(reads):
        i = t % FILMS
        if t > 0:
            memory.read(keys[i], selection[i])
        if t % 2 == 0:
            there = 3 if groups == "exact" and t % 10000 >= 5000 else 2
            if there < len(memory.objects):
                memory.remove([3])
            memory.add(keys[i], shrinkage[i], values[i][:, :there], list(range(1, there + 1)), selection[i])
        if not first_eviction and memory.evictions:
            first_eviction = t
        if t % max(1, reads // samples) == 0 or t == reads - 1:
            say(f"{t + 1:,} of {reads:,} reads")
            curve.append((t + 1, (resident_bytes(torch.device("cpu")) or 0) / 1e6))
    return curve, first_eviction, memory


def draw(curve: list[tuple[int, float]], first_eviction: int, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed")
        return
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*curve), color="#204060")
    axes.axvline(first_eviction, color="#a04020", linewidth=1, label="first eviction")
    top = 1.2 * max(mb for _, mb in curve)
    axes.set(xlabel="memory reads", ylabel="resident memory (MB)", ylim=(0, top), xlim=(0, curve[-1][0]))
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=120)
    print(f"{path}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=100_000)
    parser.add_argument("--groups", choices=("exact", "xmem"), default="exact")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # frames this small keep no second core busy
    start = time.perf_counter()
    with terminal.progress("soak") as say:
        curve, first_eviction, memory = soak(options.reads, options.groups, say=say)
    seconds = time.perf_counter() - start
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ["reads,resident_mb", *(f"{reads},{mb}" for reads, mb in curve)]
    (options.out / "soak.csv").write_text("\n".join(lines) + "\n")
    counts = f"{memory.consolidations} consolidations, {memory.evictions} evictions"
    print(f"{options.reads} reads, {counts}, {seconds:.0f} s")
    if not memory.evictions:
        print("nothing was evicted: more reads are needed")
        return 1
    steady = [mb for reads, mb in curve if reads > first_eviction]
    growth = max(steady) / steady[0] - 1
    print(f"{steady[0]:.1f} MB after the first eviction, at read {first_eviction}; at most {max(steady):.1f}")
    print(f"growth {100 * growth:.2f} %, allowed {100 * ALLOWED:.0f} %")
    draw(curve, first_eviction, options.out / "soak.png")
    return int(growth > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
