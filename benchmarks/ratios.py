"""How many times our time a tidy PyTorch takes, measured so that a busy machine gives the same
answer: what CI holds.

    python benchmarks/ratios.py                          # the ratios here, beside their floors
    python benchmarks/ratios.py --runs 20 --write quiet  # measure anew, and set the floors

Seconds differ from machine to machine and from minute to minute. The ratio of two ways to do the
same work hardly does on one thread, if the time is the CPU time of that thread and the shortest of
many calls counts: other programs take calls away, not CPU time of ours. Two threads have to be
timed by the clock, which is coarser: on a busy machine the peer, whose calls are longer, is slowed
more. tests/benchmarks/ratio-floors.json has what was measured and the floors: SLACK times the
lowest ratio of all runs. They are those of one processor, since the peers' library (MKL) has a path
of its own for each.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.peers.catalogue import Call, peers_of
from xmemk.benchmarks.peers.workloads import WORKLOADS, make_case
from xmemk.benchmarks.report import terminal

from xmemk.measure.machine import describe

FLOORS = Path(__file__).parent.parent / "tests" / "benchmarks" / "ratio-floors.json"
# By threads. The clock is less steady than CPU time, and that is not quite steady either: other
# programs take caches (the lowest read beside the rest of the tests was 2.29). A kernel of half the
# speed is below.
SLACK = {1: 0.7, 2: 0.6}
BLOCKS = 4  # a ratio below its floor is measured on, so many blocks in all


class Check(NamedTuple):
    """One ratio. A block has ``rounds``; in each, both take a turn of ``calls`` calls."""

    op: str
    workload: str
    peer: str
    threads: int
    rounds: int
    calls: int = 1

    @property
    def name(self) -> str:
        return f"{self.op} {self.workload}, {self.threads} thread{'s' if self.threads > 1 else ''}"


CHECKS = (
    Check("memory_read", "480p-early", "tidy PyTorch", 1, 6),
    Check("memory_read_dense", "480p-early", "tidy PyTorch", 1, 4),
    Check("consolidate", "480p-full", "tidy PyTorch", 1, 12),
    Check("evict_lfu", "480p-full", "topk and sort", 1, 12, 40),
    Check("memory_read", "480p-early", "tidy PyTorch", 2, 10),
    Check("memory_read_dense", "480p-early", "tidy PyTorch", 2, 6),
)


def measured(
    check: Check, enough: float = math.inf, *, blocks: int = BLOCKS, wrap: Callable[[Call], Call] = lambda f: f
) -> float:
    """The ratio of the shortest calls of the first blocks that reach ``enough``, at most
    ``blocks``.

    ``wrap`` is put around ours. The number of threads is put back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(check.threads)
    try:
        case = make_case(check.op, WORKLOADS[check.workload])
        peers = {peer.name: peer for peer in peers_of(check.op, ["cpu"])}
        calls = wrap(peers["xmemk cpu"].prepare(case)), peers[check.peer].prepare(case)
        clock = time.thread_time if check.threads == 1 else time.perf_counter
        shortest = [math.inf, math.inf]
        for _ in range(blocks):
            for _ in range(check.rounds):
                for who, call in enumerate(calls):
                    start = clock()
                    for _ in range(check.calls):
                        call()
                    shortest[who] = min(shortest[who], clock() - start)
            if shortest[1] / shortest[0] >= enough:
                break
        return shortest[1] / shortest[0]
    finally:
        torch.set_num_threads(before)


def floors() -> dict[str, Any]:
    """By processor: "floors" by name, "runs" by label and name: [lowest, highest, how many]."""
    return json.loads(FLOORS.read_text(encoding="utf-8"))


def set_floors(known: dict[str, Any], label: str, ratios: dict[str, list[float]]) -> dict[str, Any]:
    """``known`` with these ratios, and the floors of all its runs on this processor."""
    processor, processors = describe()["processor"], known.get("processors", {})
    runs = dict(processors.get(processor, {}).get("runs", {}))
    runs[label] = {name: [round(min(r), 3), round(max(r), 3), len(r)] for name, r in ratios.items()}
    lowest = {c: min(run[c.name][0] for run in runs.values() if c.name in run) for c in CHECKS}
    here = {"floors": {check.name: round(SLACK[check.threads] * low, 2) for check, low in lowest.items()}, "runs": runs}
    return {
        "how": "python benchmarks/ratios.py --runs N --write LABEL: lowest and highest of N single blocks, and N",
        "slack": {str(threads): slack for threads, slack in SLACK.items()},
        "processors": {**processors, processor: here},
    }


def floors_here(known: dict[str, Any]) -> dict[str, float]:
    """The floors of this processor by name; empty where none are known."""
    here: dict[str, float] = known.get("processors", {}).get(describe()["processor"], {}).get("floors", {})
    return here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--write", metavar="LABEL", help="what these runs were like: quiet, busy")
    options = parser.parse_args()
    known = floors() if FLOORS.exists() else {}
    ratios: dict[str, list[float]] = {check.name: [] for check in CHECKS}
    with terminal.progress("ratios") as say:
        for check in CHECKS * options.runs:
            say(check.name)
            ratios[check.name].append(measured(check, blocks=1))
    for name, r in ratios.items():
        floor = floors_here(known).get(name, math.nan)
        print(f"{name:40} lowest {min(r):.2f}, highest {max(r):.2f} of {len(r)}; floor {floor:.2f}")
    if options.write:
        text = json.dumps(set_floors(known, options.write, ratios), indent=1)
        lists = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)  # on a line each
        FLOORS.write_text(lists + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
