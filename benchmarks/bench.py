"""`xmemk bench`: runs the benchmarks of this package one after the other, and puts their results on
a page.

Each step is a program of its own, as it is run by hand. So a step that fails leaves the others
alone, and the page can name the command that repeats it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from xmemk.benchmarks.report import page, result_files
from xmemk.benchmarks.report.result_files import MachineResults


class Step(NamedTuple):
    """A module of this package and its arguments; what it does, in a few words."""

    what: str
    module: str
    arguments: tuple[str, ...]

    def command(self, save: Path) -> list[str]:
        return [sys.executable, "-m", f"xmemk.benchmarks.{self.module}", *self.arguments, "--save", str(save)]


QUICK_OPS = ("memory_read", "memory_read_dense", "consolidate", "select_prototypes", "evict_lfu")
FUNCTIONS, GROWTH, LENGTH = "functions beside their peers", "growth with the sizes", "the length of a video"


def steps(full: bool, device: str) -> list[Step]:
    """What a quick and a full run consist of, in two minutes and in thirty on two cores.

    Growth and length are measured on the CPU alone.
    """
    if device != "cpu":
        timed = () if full else ("--seconds", "100")
        return [Step(FUNCTIONS, "run", ("--suite", "gpu", "--device", device, *timed))]
    if full:
        return [
            Step(FUNCTIONS, "run", ("--full", "--seconds", "840")),
            Step(GROWTH, "studies.scaling", ("--budget", "360")),
            Step(LENGTH, "studies.length", ("--budget", "360")),
            Step("the paper's claims", "studies.claims", ()),
        ]
    return [
        Step(FUNCTIONS, "run", ("--quick", "--op", *QUICK_OPS, "--rounds", "5", "--seconds", "75")),
        Step(GROWTH, "studies.scaling", ("--quick", "--axis", "N", "--budget", "18")),
        Step(LENGTH, "studies.length", ("--quick", "--protocol", "fig1", "--budget", "15")),
    ]


def run(
    chosen: Sequence[Step], save: Path, tell: Callable[[str], None], execute: Callable[..., int] = subprocess.call
) -> list[str]:
    """Runs the steps, which append to ``save``, and returns what went wrong with them."""
    failed = []
    for number, step in enumerate(chosen, 1):
        tell(f"{number} of {len(chosen)}: {step.what}")
        code = execute(step.command(save), stdout=subprocess.DEVNULL)
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
