"""Results in the terminal and as CSV: the table of a case, the table of all, how far two runs agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from xmemk.benchmarks.report import tables
from xmemk.benchmarks.report.formatting import duration, percent, size, times
from xmemk.benchmarks.report.result_files import MachineResults, runs_of
from xmemk.benchmarks.report.schema import CaseResult, Run

console = Console(stderr=True, width=max(Console().width, 120))
PRINTED_DISAGREEMENTS = 10


def tell(text: str) -> None:
    """A line on standard error."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def show(case: CaseResult) -> None:
    """The table of one case, and below it the reasons and remarks of its rows."""
    figures = tables.figures(case)
    grid = Table(title=figures.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, align in zip(figures.columns, figures.align):
        grid.add_column(name, justify="right" if align == "r" else "left", no_wrap=align == "r")
    for row in figures.rows:
        grid.add_row(*row)
    console.print(grid)
    for one in case.rows:
        if one.reason:
            tell(f"  {one.peer}: {one.reason}")


def summary(machine: MachineResults) -> Table:
    """A case a line, or a few lines in 80 columns: our time, the fastest other way, and the original.

    Names are broken between words alone. A ratio below one is red.
    """
    grid = Table(
        title=f"medians on {machine.name}", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    grid.add_column("case")
    for name in ("xmemk", "+-", "fastest other", "x", "original\nx", "memory", "theirs"):
        words = name == "fastest other"
        grid.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for case in machine.cases:
        ours, other = case.ours, next(iter(case.rivals), None)
        ratios = [case.ratio(row) if row else None for row in (other, case.row("original"))]
        x, original = (f"[red]{times(r)}[/]" if r and r < 1 / tables.SAME else times(r) for r in ratios)
        grid.add_row(
            f"{tables.label(case.op)} {case.workload}" + (f", {case.objects} obj." if case.objects != 1 else ""),
            duration(ours.median) if ours else "-",
            percent(ours.spread) if ours and ours.spread else "",
            other.peer if other else "",
            x,
            original,
            *(size(row.extra_bytes) if row else "" for row in (ours, other)),
        )
    for column in grid.columns:
        if not column.no_wrap:
            column.min_width = max((len(word) for cell in column.cells for word in str(cell).split()), default=0)
    return grid


def write(run: Run, folder: Path, name: str) -> None:
    """The run so far as NAME.json and NAME.csv, in the place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(run.to_json(), indent=1) + "\n")
    known = ("op", "workload", "objects", "dtype", "device", "threads")
    flat: list[dict[str, Any]] = [
        {key: getattr(case, key) for key in known}
        | {key: value for key, value in row.to_json().items() if not isinstance(value, list)}
        | {"date": run.date, "commit": run.commit}
        for case in run.results
        for row in case.rows
    ]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        columns = csv.DictWriter(file, list(flat[0]) if flat else known)
        columns.writeheader()
        columns.writerows(flat)


def last_runs(files: list[Path]) -> list[Run]:
    """The last run of kind ops of each of two files, or the last two of one. ValueError where there are fewer."""
    if len(files) > 2:
        raise ValueError(f"wanted one or two files, got {len(files)}")
    found = []
    for file in files:
        runs = [run for _, run in runs_of(file) if run.kind == "ops"]
        count = 3 - len(files)
        if len(runs) < count:
            raise ValueError(f"{file}: wanted {count} runs of kind ops, got {len(runs)}")
        found += runs[-count:]
    return found


def disagreements(a: Run, b: Run) -> list[tuple[float, str, float, float]]:
    """Of every row with a ratio in both runs: how far they are apart, as a share; its name; both ratios.

    The largest comes first. The row of ours that the ratios are to is left out.
    """

    def ratios(run: Run) -> dict[tuple[Any, ...], float]:
        found = {}
        for case in run.results:
            base = next((row for row in case.rows if row.ours and row.ratio), None)
            found |= {(*case.key, row.peer): row.ratio for row in case.rows if row.ratio and row is not base}
        return found

    first, second = ratios(a), ratios(b)
    both = [(first[key], second[key], ", ".join(map(str, key))) for key in first.keys() & second.keys()]
    return sorted(((max(x / y, y / x) - 1, name, x, y) for x, y, name in both), reverse=True)


def agree(files: list[Path], allowed: float = 0.1) -> int:
    """Prints how far the last runs of two files, or the last two of one, agree.

    Returns 1 where a ratio is further than ``allowed`` apart, or there is nothing to compare.
    """
    try:
        a, b = last_runs(files)
    except (OSError, ValueError) as wrong:
        tell(f"--agree: {wrong}")
        return 1
    found = disagreements(a, b)
    if not found:
        tell("no case and peer with a ratio in both runs")
        return 1
    grid = Table(title=f"ratios to ours, {a.date} and {b.date}", title_justify="left")
    for name in ("apart", "first", "second", "case and peer"):
        grid.add_column(name, justify="left" if name.startswith("case") else "right", no_wrap=True)
    for apart, name, first, second in found[:PRINTED_DISAGREEMENTS]:
        grid.add_row(f"{100 * apart:.1f} %", f"{first:.3f}", f"{second:.3f}", name)
    console.print(grid)
    beyond = sum(apart > allowed for apart, *_ in found)
    tell(f"{len(found)} ratios, {beyond} of them more than {100 * allowed:.0f} % apart")
    return int(beyond > 0)
