"""`xmemk bench`: runs the benchmarks of this package one after the other, and puts their results on a page.

Each step is a program of its own, as it is run by hand, so that whatever happens to one leaves the others alone and the
page can name the command that repeats it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from xmemk.benchmarks.report import page, reading
from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.reading import Case, Place, Row


class Step(NamedTuple):
    """A module of this package and its arguments; what it does, in a few words."""

    what: str
    module: str
    arguments: tuple[str, ...]

    def command(self, save: Path) -> list[str]:
        return [sys.executable, "-m", f"xmemk.benchmarks.{self.module}", *self.arguments, "--save", str(save)]


OPS = ("read", "dense", "consolidate", "select", "evict")


def steps(full: bool, device: str) -> list[Step]:
    """What a quick and a full run consist of, in two minutes and in thirty on two cores. Growth and length are measured
    on the CPU alone."""
    if device != "cpu":
        timed = () if full else ("--seconds", "100")
        return [Step("functions beside their peers", "run", ("--suite", "gpu", "--device", device, *timed))]
    if full:
        return [
            Step("functions beside their peers", "run", ("--full", "--seconds", "840")),
            Step("growth with the sizes", "scaling", ("--budget", "360")),
            Step("the length of a video", "length", ("--budget", "360")),
            Step("the paper's claims", "claims", ()),
        ]
    return [
        Step("functions beside their peers", "run", ("--quick", "--op", *OPS, "--rounds", "5", "--seconds", "75")),
        Step("growth with the sizes", "scaling", ("--quick", "--axis", "N", "--budget", "18")),
        Step("the length of a video", "length", ("--quick", "--protocol", "fig1", "--budget", "15")),
    ]


def run(
    chosen: Sequence[Step], save: Path, said: Callable[[str], None], execute: Callable[..., int] = subprocess.call
) -> list[str]:
    """Runs the steps, which append to ``save``, and returns what went wrong with them."""
    failed = []
    for number, step in enumerate(chosen, 1):
        said(f"{number} of {len(chosen)}: {step.what}")
        code = execute(step.command(save), stdout=subprocess.DEVNULL)
        if code:
            failed.append(f"{step.what} ended with exit code {code}, what it said is above")
    return failed


def make_page(
    results: Sequence[Path], out: Path, commands: list[str], failed: Sequence[str] = (), after: int = 0
) -> list[Place]:
    """Reads result files and writes their page. ValueError for files without results. ``after`` as reading.read has
    it.
    """
    places, passed_over = reading.read(results, after)
    page.write_page(out, places, [*failed, *passed_over], commands)
    return places


def repeat(chosen: Sequence[Step], save: Path) -> list[str]:
    """The steps as lines for a shell."""
    return [shlex.join(["python", *step.command(save)[1:]]) for step in chosen]


def summary(place: Place) -> Table:
    """A case a line, or a few lines in 80 columns: our time, the fastest other way to the same result and the original
    beside it. Names are broken between words alone."""
    table = Table(
        title=f"medians on {place.name}", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("case")
    for name in ("xmemk", "+-", "fastest other", "x", "original\nx", "memory", "theirs"):
        words = name == "fastest other"
        table.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for case in place.cases:
        ours, others = case.ours, case.rivals[:1]
        name = f"{case.op} {case.workload}" + (f", {case.objects} obj." if case.objects != 1 else "")
        cells = [w.duration(ours.time or 0.0), w.percent(ours.spread) if ours.spread else ""] if ours else ["-", ""]
        cells += [others[0].peer, _ratio(case, others[0])] if others else ["", ""]
        original = case.row("original")
        cells.append(_ratio(case, original) if original else "")
        cells += [
            "" if not rows or rows[0] is None or rows[0].extra_bytes is None else w.size(rows[0].extra_bytes)
            for rows in ([ours], others)
        ]
        table.add_row(name, *cells)
    for column in table.columns:
        if not column.no_wrap:
            column.min_width = max((len(word) for cell in column.cells for word in str(cell).split()), default=0)
    return table


def _ratio(case: Case, row: Row) -> str:
    """How many times our time a row took, red where that is less."""
    ratio = case.ratio(row)
    if ratio is None:
        return ""
    return f"[red]{w.times(ratio)}[/]" if ratio < 1 / w.SAME else w.times(ratio)
