"""``xmemk validate``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table


def validate(
    quick: Annotated[bool, typer.Option("--quick", help="A few small shapes only (seconds).")] = False,
    backend: Annotated[str | None, typer.Option(help="Only this backend.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the best there is.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare every backend on this machine with the float64 oracle, over dtypes and shapes.

    The figure is the largest share of the allowed error that was used: 1 or less passes. Exit code 1 if anything fails.
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
    table = Table(title=f"xmemk validate on {device}", title_justify="left", box=None, pad_edge=False)
    for name in ("op", "backend", "dtype", "checks", "worst", "result"):
        table.add_column(name, justify="right" if name in ("checks", "worst") else "left", no_wrap=name != "result")
    rows = []
    # On a terminal the table grows while the work goes on; in a file it comes whole.
    with Live(table, console=Console(highlight=False, stderr=json_), transient=json_, refresh_per_second=8):
        for row in validation.validate(shapes, device, backend):
            rows.append(row)
            if row.unavailable is not None:
                table.add_row(row.op, row.backend, "", "", "", f"[dim]{row.unavailable}[/]")
            else:
                verdict = "[green]passed[/]" if row.passed else f"[bold red]FAILED[/] {row.failures[0]}"
                table.add_row(row.op, row.backend, row.dtype, str(row.checks), f"{row.worst:.2f}", verdict)
    tested = [row for row in rows if row.unavailable is None]
    failed = [row for row in tested if not row.passed]
    checks = sum(row.checks for row in tested)
    if json_:
        typer.echo(
            json.dumps({"device": device, "rows": [row.as_dict() for row in rows], "passed": not failed}, indent=2)
        )
    else:
        typer.echo(f"{checks} comparisons, {len(tested) - len(failed)} of {len(tested)} rows passed")
    if failed or not tested:
        raise typer.Exit(1)
