"""Results for reading and for keeping: the table in the terminal, lines of JSON, CSV; how far two runs agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

console = Console(stderr=True, width=max(Console().width, 120))
KEY = ("op", "workload", "objects", "dtype", "device", "threads")


def show(result: dict[str, Any]) -> None:
    """The table of one case, and below it what a row has to say beyond its figures."""
    rows = result["rows"]
    on_gpu = any(row["device_seconds"] for row in rows)
    title = f"{result['op']}, {result['workload']}, {result['objects']} object(s), {result['dtype']}"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("", no_wrap=True)
    times = ("device", "+-", "cold", "host") if on_gpu else ("median", "+-")
    for name in (*times, "times ours", "roof", "MB", "error"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row["median"] is None:
            continue
        cells = [
            duration(row["median"]),
            f"{100 * row['spread']:.0f} %" if row["spread"] else f"{len(row['seconds'])} x",
        ]
        if on_gpu:
            cells += [duration(row["cold_seconds"]), duration(row["host_seconds"])]
        made.add_row(
            row["peer"],
            *cells,
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "" if row["of_roof"] is None else f"{100 * row['of_roof']:.0f} %",
            "" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.0f}",
            errors(row),
        )
    console.print(made)
    for row in rows:
        if row["reason"]:
            console.print(f"  {row['peer']}: {row['reason']}", highlight=False, soft_wrap=True)


def errors(row: dict[str, Any]) -> str:
    if row["status"] == "rounded":
        return f"rounded {row['relative_error']:.1e}"
    return "" if row["error"] is None else f"{row['error']:.1e}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.1f} us" if seconds < 1e-4 else f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.1f} ms"


def append(run: dict[str, Any], path: Path) -> None:
    """One line of JSON a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(run) + "\n")


def write(run: dict[str, Any], folder: Path, name: str) -> None:
    """The run so far as NAME.json and NAME.csv, in the place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n")
    flat = [
        {key: result[key] for key in KEY}
        | {key: value for key, value in row.items() if key != "seconds"}
        | {"date": run["date"], "commit": run["commit"]}
        for result in run["results"]
        for row in result["rows"]
    ]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        columns = csv.DictWriter(file, list(flat[0]) if flat else KEY)
        columns.writeheader()
        columns.writerows(flat)


def last_run(path: Path, back: int = 1) -> dict[str, Any]:
    """The last run of a file (or the one so many lines before its end) that compares peers."""
    runs = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    runs = [run for run in runs if run.get("kind", "ops") == "ops"]
    if len(runs) < back:
        raise ValueError(f"{path}: wanted {back} runs of kind ops, got {len(runs)}")
    return runs[-back]


def disagreements(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[float, str, float, float]]:
    """Of every row that has a ratio in both runs, but for the one that the ratios are to: how far they are apart, as a
    share; its name; both. The largest first."""

    def ratios(run: dict[str, Any]) -> dict[tuple[Any, ...], float]:
        return {
            (*(result[key] for key in KEY), row["peer"]): row["ratio"]
            for result in run["results"]
            for row in result["rows"]
            if row.get("ratio") and row is not next((r for r in result["rows"] if r["ours"] and r["ratio"]), None)
        }

    one, other = ratios(a), ratios(b)
    found = []
    for key in one.keys() & other.keys():
        ours, theirs = one[key], other[key]
        found.append((max(ours / theirs, theirs / ours) - 1, ", ".join(map(str, key)), ours, theirs))
    return sorted(found, reverse=True)


def last_two(files: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last run of each of two files, or the last two of one."""
    if len(files) > 2:
        raise ValueError(f"wanted one or two files, got {len(files)}")
    if len(files) == 2:
        return last_run(files[0]), last_run(files[1])
    return last_run(files[0], 2), last_run(files[0])


def agree(files: list[Path], allowed: float = 0.1) -> int:
    """Prints how far the last runs of two files, or the last two of one, agree; 1 where a ratio is further than
    ``allowed`` apart, or there is nothing to compare."""
    try:
        a, b = last_two(files)
    except (OSError, ValueError, KeyError) as wrong:
        console.print(f"--agree: {wrong}", highlight=False, soft_wrap=True)
        return 1
    found = disagreements(a, b)
    if not found:
        console.print("no case and peer with a ratio in both runs")
        return 1
    made = Table(title=f"ratios to ours, {a['date']} and {b['date']}", title_justify="left")
    for name in ("apart", "first", "second", "case and peer"):
        made.add_column(name, justify="left" if name.startswith("case") else "right", no_wrap=True)
    for apart, name, ours, theirs in found[:10]:
        made.add_row(f"{100 * apart:.1f} %", f"{ours:.3f}", f"{theirs:.3f}", name)
    console.print(made)
    beyond = sum(apart > allowed for apart, *_ in found)
    console.print(f"{len(found)} ratios, {beyond} of them more than {100 * allowed:.0f} % apart", highlight=False)
    return int(beyond > 0)
