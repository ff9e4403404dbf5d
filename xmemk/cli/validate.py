"""``xmemk validate``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import Device, device_named
from .progress import Progress
from .terminal import console_for, print_table

if TYPE_CHECKING:
    from ..validate import Outcome


def validate(
    quick: Annotated[bool, typer.Option("--quick", help="A few small shapes only (seconds).")] = False,
    backend: Annotated[str | None, typer.Option(help="Only this backend.")] = None,
    device: Device = None,
    fuzz: Annotated[
        int | None, typer.Option(min=1, help="Instead: so many random adversarial calls of each backend, on the CPU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The number of the first of these calls.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare every backend on this machine with the float64 oracle, over dtypes and shapes.

    The figure is the largest share of the allowed error that was used: 1 or less passes. Exit code
    1 if anything fails.
    """
    from .. import validate as validation
    from ..backends import BACKENDS

    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"--backend: wanted one of {', '.join(BACKENDS)}, got {backend!r}")
    if fuzz is not None:
        if quick or device not in (None, "cpu"):
            raise ValueError("--fuzz: calls on the CPU, without --quick and without another --device")
        _fuzz(fuzz, seed, backend, json_)
        return
    device = device_named(device)
    shapes = validation.QUICK if quick else validation.FULL
    rows = []
    console = console_for(stderr=json_)
    with Progress("comparing") as progress:
        for row in validation.validate(shapes, device, backend):
            rows.append(row)
            progress.update(len(rows), validation.outcomes(device, backend), f"{row.op} {row.backend} {row.dtype}")
    tested = [row for row in rows if row.unavailable is None]
    failed = [row for row in tested if not row.passed]
    if json_:
        report = {"device": device, "passed": bool(tested) and not failed, "rows": [row.as_dict() for row in rows]}
        typer.echo(json.dumps(report, indent=2))
    else:
        print_table(console, _table(rows, device))
        _print_rest(console, rows)
    if failed or not tested:
        raise typer.Exit(1)


def _fuzz(count: int, first: int, backend: str | None, json_: bool) -> None:
    from .. import fuzz
    from ..backends import BACKENDS

    console = console_for(stderr=json_)
    able = [name for name in BACKENDS if fuzz.refused(name) is None]
    if backend is not None and backend not in able:
        raise ValueError(f"--backend: {backend!r} {fuzz.refused(backend)}")
    calls: dict[str, int] = {}
    wrong: list[fuzz.Report] = []
    with Progress("calling") as progress:
        for name in able if backend is None else [backend]:
            progress.begin(f"calling {name}")
            for report in fuzz.run(count, name, first):
                calls[name] = calls.get(name, 0) + 1
                progress.update(calls[name], count, f"{len(wrong)} differ" if wrong else "")
                if report.faults:
                    wrong.append(report)
    if json_:
        listed = [{**asdict(report), "case": str(report.case)} for report in wrong]
        typer.echo(json.dumps({"calls": calls, "passed": not wrong, "differences": listed}, indent=2))
    for report in wrong[:10] if not json_ else []:
        console.print(f"[bold red]DIFFERS[/] {report.op} on {report.backend}: ", end="")
        console.print(f"{report.faults[0]}; {report.case}", markup=False)
        console.print(f"  again: xmemk validate --backend {report.backend} --fuzz 1 --seed {report.number}")
    if not json_:
        made = ", ".join(f"{number:,} of {name}" for name, number in calls.items())
        console.print(f"{made}: {len(wrong) or 'none'} of these calls {'differs' if not wrong else 'differ'}")
    if wrong:
        raise typer.Exit(1)


def _table(rows: list[Outcome], device: str) -> Table:
    """An op and backend a line; by dtype the share of the allowed error that was used."""
    table = Table(title=f"share of the allowed error that was used, on {device}", title_justify="left", box=None)
    table.add_column("function", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    dtypes = list(dict.fromkeys(row.dtype for row in rows if row.dtype))
    for name in (*dtypes, "checks"):
        table.add_column(name, justify="right", no_wrap=True)
    lines: dict[tuple[str, str], dict[str, Outcome]] = {}
    for row in rows:
        if row.unavailable is None:
            lines.setdefault((row.op, row.backend), {})[row.dtype] = row
    for (op, backend), line in lines.items():
        cells = [_cell(line[d]) if d in line else "" for d in dtypes]
        table.add_row(op, backend, *cells, str(sum(row.checks for row in line.values())))
    return table


def _cell(row: Outcome) -> str:
    return f"[green]{row.worst:.2f}[/]" if row.passed else f"[bold red]FAILED {row.worst:.3g}[/]"


def _print_rest(console: Console, rows: list[Outcome]) -> None:
    absent: dict[str, list[str]] = {}
    for row in rows:
        if row.unavailable is not None:
            absent.setdefault(f"{row.backend} {row.unavailable.replace(row.op, '...')}", []).append(row.op)
    for why, ops in absent.items():
        console.print(f"[dim]not tested: {why.replace('...', ', '.join(ops))}[/]")
    for row in rows:
        for failure in row.failures[:3]:
            console.print(f"[bold red]FAILED[/] {row.op} {row.backend} {row.dtype}: ", end="")
            console.print(failure, markup=False)
    tested = [row for row in rows if row.unavailable is None]
    checks, passed = sum(row.checks for row in tested), sum(row.passed for row in tested)
    console.print(f"{checks} comparisons; {passed} of {len(tested)} combinations of function, backend and dtype passed")
