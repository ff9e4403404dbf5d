"""`make bench`: every op and everybody who does it, by pytest-benchmark. `make test` collects test_*.py, so not this.

A group is an op on a workload. A peer that cannot run or is wrong is skipped with its reason. `make bench
BENCH="-k read --benchmark-autosave --benchmark-compare"` keeps a run and compares with the last one.
"""

import pytest
import torch
from xmemk.benchmarks.peers import catalogue as known
from xmemk.benchmarks.peers.workloads import WORKLOADS, make_case

CASES = [
    ("memory_read", "480p-early"),
    ("memory_read", "480p-full"),
    ("memory_read_dense", "480p-early"),
    ("memory_read_train", "480p-early"),
    ("consolidate", "480p-full"),
    ("select_prototypes", "480p-full"),
    ("evict_lfu", "480p-full"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS = ["triton" if DEVICE == "cuda" else "cpu", "torch"]
ALL = [(*case, peer) for case in CASES for peer in known.peers_of(case[0], OURS)]


@pytest.fixture(scope="module")
def made():
    """The inputs of the case at hand, made once for everybody."""
    held = {}

    def make(op, workload):
        if (op, workload) not in held:
            held.clear()
            held[op, workload] = make_case(op, WORKLOADS[workload], device=DEVICE)
        return held[op, workload]

    return make


@pytest.mark.parametrize(
    ("op", "workload", "peer"), ALL, ids=[f"{op}-{w}-{p.name}".replace(" ", "_") for op, w, p in ALL]
)
def test_op(benchmark, made, op, workload, peer):
    benchmark.group = f"{op}, {workload}"
    case = made(op, workload)
    try:
        call = peer.prepare(case)
    except known.Unavailable as reason:
        pytest.skip(str(reason))
    compared = known.verdict(case, call())
    if compared is not None and not compared.passed:
        pytest.skip(f"wrong: {compared}")

    def run():
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=7, iterations=50 if op in ("select_prototypes", "evict_lfu") else 1, warmup_rounds=1)
