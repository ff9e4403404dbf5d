"""``xmemk validate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from ..validate import Outcome


def validate(
    quick: Annotated[bool, typer.Option("--quick", help="A few small shapes only (seconds).")] = False,
    backend: Annotated[str | None, typer.Option(help="Only this backend.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the best there is.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare every backend on this machine with the float64 oracle, over dtypes and shapes.

    The figure is the largest share of the allowed error that was used: 1 or less passes. Exit code
    1 if anything fails.
    """
    import torch

    from .. import validate as validation
    from ..backends import BACKENDS

    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"--backend: wanted one of {', '.join(BACKENDS)}, got {backend!r}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device: wanted {'cpu or cuda' if torch.cuda.is_available() else 'cpu'}, got {device!r}")
    shapes = validation.QUICK if quick else validation.FULL
    rows = []
    # On a terminal the table grows while the work goes on; in a file it comes whole.
    console = Console(highlight=False, stderr=json_)
    with Live(console=console, transient=True, refresh_per_second=8, auto_refresh=console.is_terminal) as live:
        for row in validation.validate(shapes, device, backend):
            rows.append(row)
            live.update(_table(rows, device))
    tested = [row for row in rows if row.unavailable is None]
    failed = [row for row in tested if not row.passed]
    if json_:
        report = {"device": device, "passed": bool(tested) and not failed, "rows": [row.as_dict() for row in rows]}
        typer.echo(json.dumps(report, indent=2))
    else:
        console.print(_table(rows, device))
        _print_rest(console, rows)
    if failed or not tested:
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
