"""Results in the terminal and as CSV: a case, all cases, how far two runs agree."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from xmemk.benchmarks.report import tables
from xmemk.benchmarks.report.result_files import MachineResults, runs_of
from xmemk.benchmarks.report.schema import CaseResult, Run

console = Console(stderr=True, width=max(Console().width, 120))
PRINTED_DISAGREEMENTS = 10


def tell(text: str) -> None:
    """A line on standard error."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def grid_of(table: tables.Table, hidden: Sequence[str] = ()) -> Table:
    """The table for the terminal, without the columns ``hidden``.

    Names are broken between words alone.
    """
    grid = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    shown = [i for i, name in enumerate(table.columns) if name not in hidden]
    for i in shown:
        number = table.align[i] == "r"
        words = [] if number else [len(word) for row in table.rows for word in row[i].split()]
        justify: Literal["left", "right"] = "right" if number else "left"
        grid.add_column(table.columns[i], justify=justify, no_wrap=number, min_width=max(words, default=None))
    for row in table.rows:
        grid.add_row(*(escape(row[i]) for i in shown))
    return grid


def show(case: CaseResult) -> None:
    """The table of one case, and below it the reasons and remarks of its rows."""
    console.print(grid_of(tables.figures(case)))
    for row in case.rows:
        if row.reason:
            tell(f"  {row.peer}: {row.reason}")


def summary(machine: MachineResults) -> Table:
    """A case a line, or a few lines in 80 columns."""
    table = tables.summary(machine.cases)
    return grid_of(table._replace(title=f"medians on {machine.name}"), ("line", "tidy"))


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
    """The last run of kind ops of each of two files, or the last two of one.

    ValueError where there are fewer.
    """
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
    """Of every row with a ratio in both runs: how far they are apart, as a share; its name; both
    ratios.

    The largest comes first. The row of ours that the ratios are to is left out.
    """

    def ratios(run: Run) -> dict[tuple[Any, ...], float]:
        found: dict[tuple[Any, ...], float] = {}
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
