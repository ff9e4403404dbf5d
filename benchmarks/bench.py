"""`xmemk bench`: runs the benchmarks of this package one after the other, and puts their results on
a page.

Each step is a program of its own, as it is run by hand. So a step that fails leaves the others
alone, and the page can name the command that repeats it.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from xmemk.benchmarks.report import page, result_files
from xmemk.benchmarks.report.result_files import MachineResults

QUICK_OPS = ("memory_read", "memory_read_dense", "consolidate", "select_prototypes", "evict_lfu")
FUNCTIONS, GROWTH, LENGTH = "functions beside their peers", "growth with the sizes", "the length of a video"
STARTING = 5.0  # seconds that a step takes to begin
SHORT = 60.0  # seconds; for fewer, the functions alone are measured, without their tests and memory
OVERTIME = 15.0  # seconds after which a step that has a budget is ended; it keeps what it has measured


class Step(NamedTuple):
    """A module of this package and its arguments; what it does, in a few words.

    seconds: what it may take, where its option ``budget`` is given them.
    """

    what: str
    module: str
    arguments: tuple[str, ...]
    seconds: float | None = None
    budget: str = "--budget"

    def command(self, save: Path) -> list[str]:
        words = [sys.executable, "-m", f"xmemk.benchmarks.{self.module}", *self.arguments]
        words += [] if self.seconds is None else [self.budget, f"{max(1.0, self.seconds - STARTING):.0f}"]
        return [*words, "--save", str(save)]


def steps(full: bool, device: str, seconds: float | None = None) -> list[Step]:
    """What a run consists of: by default two minutes on two cores, in full thirty.

    Growth and length are measured on the CPU alone.
    """
    if device != "cpu":
        timed = seconds if seconds or full else 100.0
        return [Step(FUNCTIONS, "run", ("--suite", "gpu", "--device", device), timed, "--seconds")]
    total = seconds or (1600.0 if full else 120.0)
    if total < SHORT:
        how = ("--quick", "--op", *QUICK_OPS, "--rounds", "3", "--untested", "--no-memory")
        return [Step(FUNCTIONS, "run", how, total, "--seconds")]
    if full:
        return [
            Step(FUNCTIONS, "run", ("--full",), 0.53 * total, "--seconds"),
            Step(GROWTH, "studies.scaling", (), 0.22 * total),
            Step(LENGTH, "studies.length", (), 0.22 * total),
            Step("the paper's claims", "studies.claims", (), 0.03 * total),
        ]
    return [
        Step(FUNCTIONS, "run", ("--quick", "--op", *QUICK_OPS, "--rounds", "5"), 0.66 * total, "--seconds"),
        Step(GROWTH, "studies.scaling", ("--quick", "--axis", "N"), 0.18 * total),
        Step(LENGTH, "studies.length", ("--quick", "--protocol", "fig1"), 0.16 * total),
    ]


def execute(command: list[str], seconds: float | None) -> int:
    """The exit code of a step; one that takes too long is asked to end, and keeps its results."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        return process.wait(None if seconds is None else seconds + OVERTIME)
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(OVERTIME)
            return 0
    finally:
        process.kill()
    return process.wait()


def run(
    chosen: Sequence[Step], save: Path, tell: Callable[[str], None], execute: Callable[..., int] = execute
) -> list[str]:
    """Runs the steps, which append to ``save``, and returns what went wrong with them."""
    failed = []
    for number, step in enumerate(chosen, 1):
        limit = "" if step.seconds is None else f", about {step.seconds:.0f} s"
        tell(f"{number} of {len(chosen)}: {step.what}{limit}")
        code = execute([*step.command(save), "--quiet"], step.seconds)
        if code:
            failed.append(f"{step.what} ended with exit code {code}, its messages are above")
    return failed


def make_page(
    results: Sequence[Path], out: Path, commands: list[str], failed: Sequence[str] = (), after: int = 0
) -> list[MachineResults]:
    """Reads result files and writes their page. ValueError for files without results.

    ``after`` as :func:`result_files.read` has it.
    """
    machines, passed_over = result_files.read(results, after)
    page.write_page(out, machines, [*failed, *passed_over], commands)
    return machines


def repeat(chosen: Sequence[Step], save: Path) -> list[str]:
    """The steps as lines for a shell."""
    return [shlex.join(["python", *step.command(save)[1:]]) for step in chosen]
