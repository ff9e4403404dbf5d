"""python tests/ptx/run.py: every case's kernels run from their PTX, in a table.

Findings of the interpreter are printed below a case's row. Exit status 1 where there are any, or a
result is wrong.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import cases
import torch
from interp import launch, machine


@dataclass(frozen=True)
class Result:
    case: str
    architecture: int
    runs: tuple[launch.Run, ...]
    share: float  # the largest, of what is allowed
    seconds: float
    error: str = ""

    @property
    def findings(self) -> list[machine.Finding]:
        return [finding for run in self.runs for finding in run.findings]

    @property
    def passed(self) -> bool:
        return self.share <= 1 and not self.findings and not self.error


def run_case(case: cases.Case, architecture: int, seed: int = 0, change: launch.Change | None = None) -> Result:
    started = time.perf_counter()
    runs: list[launch.Run] = []
    share, error = float("inf"), ""
    try:
        with cases.assumed(architecture), launch.taken(architecture, seed, change) as runs:
            share = max(comparison.share for comparison in case.call())
    except Exception as problem:  # a row of the table says so
        error = f"{type(problem).__name__}: {problem}"
    return Result(case.name, architecture, tuple(runs), share, time.perf_counter() - started, error)


def results(names: str, architectures: list[int], seeds: int, essential: bool) -> Iterator[Result]:
    for architecture in architectures:
        for case in cases.CASES:
            if names in case.name and (case.essential or not essential):
                for seed in range(seeds):
                    yield run_case(case, architecture, seed)


HEAD = ("case", "sm", "triton", "launches", "instructions", "findings", "share", "seconds")


def row(result: Result, version: str) -> tuple[str, ...]:
    instructions = sum(run.instructions for run in result.runs)
    numbers = (
        len(result.runs),
        f"{instructions:,}",
        len(result.findings),
        f"{result.share:.2g}",
        f"{result.seconds:.1f}",
    )
    return result.case, str(result.architecture), version, *map(str, numbers)


def print_row(cells: tuple[str, ...]) -> None:
    widths = (42, 3, 7, 8, 12, 8, 8, 7)
    print("  ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(cells, widths))), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/ptx/run.py", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", choices=(80, 90), default=[80, 90])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each case, each with other interleavings")
    parser.add_argument("--essential", action="store_true", help="the cases of `make test`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    version = importlib.metadata.version("triton")
    print_row(HEAD)
    bad = 0
    started = time.perf_counter()
    for result in results(options.only, options.arch, options.seeds, options.essential):
        print_row(row(result, version))
        for line in filter(None, [result.error, *map(str, result.findings)]):
            print(f"    {line}", flush=True)
        bad += not result.passed
    print(f"{bad} failed, {time.perf_counter() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
