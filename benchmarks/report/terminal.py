"""Results in the terminal and as CSV: a case, all cases, how far two runs agree."""

from __future__ import annotations

import csv
import json
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text
from xmemk.benchmarks.report import tables
from xmemk.benchmarks.report.result_files import MachineResults, runs_of
from xmemk.benchmarks.report.schema import CaseResult, ResultLine

console = Console(stderr=True)
PRINTED_DISAGREEMENTS = 10
quiet = False  # no tables: set by the option of that name
QUIET_SECONDS = 2.0  # what takes longer says what it does


def tell(text: str) -> None:
    """A line on standard error."""
    print_line(console, text)


def print_line(console: Console, text: str) -> None:
    """A line, which a terminal gets in several, broken between words alone."""
    text = wrapped(text, console.width) if console.is_terminal else text
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Says on standard error what is being done: in place, or, where that is no terminal, in a line
    from time to time."""
    if console.is_terminal:
        with console.status(Text(what)) as status:
            yield lambda now: status.update(Text(f"{what}: {now}"))
        return
    last = time.monotonic()

    def line(now: str) -> None:
        nonlocal last
        if time.monotonic() - last > QUIET_SECONDS:
            tell(f"{what}: {now}")
            last = time.monotonic()

    yield line


def fitted(table: tables.ReportTable, width: int, hidden: Sequence[str] = ()) -> RenderableType:
    """The table without the columns ``hidden`` and those that are empty; row by row where a word
    would be broken."""
    shown = [i for i, name in enumerate(table.columns) if name not in hidden and any(row[i] for row in table.rows)]
    grid = Grid(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    least, most = [], []
    for i in shown:
        cells = [row[i] for row in table.rows]
        whole = cells if table.align[i] == "r" else " ".join(cells).split()  # a number and its unit stay together
        least.append(max(map(len, [*whole, *table.columns[i].split()])))
        most.append(max(map(len, [*cells, table.columns[i]])))
    room = width - sum(least) - 2 * len(shown)
    share = min(1.0, room / max(1, sum(most) - sum(least)))
    for i, low, high in zip(shown, least, most):
        justify: Literal["left", "right"] = "right" if table.align[i] == "r" else "left"
        grid.add_column(table.columns[i], justify=justify, width=low + int(share * (high - low)))
    for row in table.rows:
        grid.add_row(*(Text(row[i]) for i in shown))
    if room >= 0:
        return grid
    lines = [Text(table.title, style="italic")]
    for row in table.rows:
        first, *others = (i for i in shown if row[i])
        figures = "; ".join(f"{table.columns[i]}: {row[i]}" if table.columns[i] else row[i] for i in others)
        lines.append(Text(wrapped("; ".join(filter(None, (row[first], figures))), width), overflow="ignore"))
    return Group(*lines)


def show(table: tables.ReportTable, remarks: Iterable[str] = (), hidden: Sequence[str] = ()) -> None:
    """A table that has rows, and lines below it."""
    if quiet:
        return
    if table.rows:
        console.print(fitted(table, console.width, hidden), crop=False)
    for remark in filter(None, remarks):
        tell(f"  {remark}")


def show_case(case: CaseResult) -> None:
    """The table of one case, and below it the reasons and remarks of its rows, each once."""
    peers: dict[str, list[str]] = {}
    for row in case.rows:
        peers.setdefault(row.reason, []).append(row.peer)
    reasons = {reason: "all" if len(who) == len(case.rows) > 1 else ", ".join(who) for reason, who in peers.items()}
    lines = [f"{who}: {reason}" for reason, who in reasons.items() if reason]
    show(tables.figures(case), lines if case.timed else [f"{tables.title(case)}: {line}" for line in lines])


def summaries(machine: MachineResults, width: int) -> Iterator[RenderableType]:
    """What was measured, in tables of a few columns."""
    medians = tables.summary(machine.cases)._replace(title=f"medians on {machine.name}")
    hidden = ("line", "tidy", "how", "workload")
    for table in (medians, tables.growth(machine), tables.tracks(machine.tracks), tables.claims(machine.claims)):
        if table.rows:
            yield fitted(table, width, hidden)


def write(run: ResultLine, folder: Path, name: str) -> None:
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


def last_runs(files: Sequence[Path]) -> list[ResultLine]:
    """The last run of kind ops of each of two files, or the last two of one.

    ValueError where there are fewer.
    """
    count = 3 - len(files)
    runs = [[run for _, run in runs_of(file) if run.kind == "ops"] for file in files]
    if count not in (1, 2) or any(len(of_file) < count for of_file in runs):
        raise ValueError(f"wanted a file with two runs of kind ops, or two files with one, got {list(map(str, files))}")
    return [run for of_file in runs for run in of_file[-count:]]


def disagreements(a: ResultLine, b: ResultLine) -> list[tuple[float, str, float, float]]:
    """Of every row with a ratio in both runs: how far they are apart, as a share; its name; both
    ratios.

    The largest comes first. The row of ours that the ratios are to is left out.
    """
    ratios: list[dict[tuple[Any, ...], float]] = [{}, {}]
    for run, by_row in zip((a, b), ratios):
        for case in run.results:
            base = next((row for row in case.rows if row.ours and row.ratio), None)
            by_row.update({(*case.key, row.peer): row.ratio for row in case.rows if row.ratio and row is not base})
    first, second = ratios
    both = [(first[key], second[key], ", ".join(map(str, key))) for key in first.keys() & second.keys()]
    return sorted(((max(x / y, y / x) - 1, name, x, y) for x, y, name in both), reverse=True)


def agree(files: Sequence[Path], allowed: float = 0.1) -> int:
    """Prints how far the last runs of two files, or the last two of one, agree.

    Returns 1 where a ratio is further than ``allowed`` apart, or there is nothing to compare.
    """
    try:
        a, b = last_runs(files)
    except (OSError, ValueError) as wrong:
        tell(f"--agree: {wrong}")
        return 1
    apart = disagreements(a, b)
    rows = [(name, f"{100 * d:.1f} %", f"{x:.3f}", f"{y:.3f}") for d, name, x, y in apart[:PRINTED_DISAGREEMENTS]]
    columns = ("case and peer", "apart", "first", "second")
    beyond = sum(d > allowed for d, *_ in apart)
    counts = f"{len(apart)} ratios, {beyond} of them more than {100 * allowed:.0f} % apart"
    nothing = "no case and peer with a ratio in both runs"
    table = tables.ReportTable(f"ratios to ours, {a.date} and {b.date}", columns, "lrrr", rows)
    show(table, [counts if apart else nothing])
    return int(beyond > 0 or not apart)
