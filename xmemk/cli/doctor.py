"""``xmemk doctor``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from .terminal import console_for, print_table


def doctor(json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False) -> None:
    """Say what is installed, built and usable, what is not, and how to get it.

    Exit code 1 if something is there but broken; what is only missing is no error.
    """
    from .. import doctor as examination

    findings = examination.examine()
    backends = examination.backends()
    if json_:
        typer.echo(json.dumps({"findings": [f.as_dict() for f in findings], "backends": backends}, indent=2))
    else:
        _print(findings, backends)
    if any(f.state == "broken" for f in findings):
        raise typer.Exit(1)


def _print(findings: list, backends: dict[str, dict[str, str]]) -> None:  # type: ignore[type-arg]
    console = console_for()
    style = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = finding.detail + (f"\n[dim]to get it: {_escape(finding.remedy)}[/]" if finding.remedy else "")
        table.add_row(finding.name, f"[{style[finding.state]}]{finding.state}[/]", text)
    print_table(console, table)
    console.print()
    choice = Table(title="what serves which function here", title_justify="left", box=None, pad_edge=False)
    choice.add_column("function", no_wrap=True)
    names = next(iter(backends.values())).keys()
    for name in names:
        choice.add_column(name)
    for op, served in backends.items():
        choice.add_row(op, *("[green]yes[/]" if why == "yes" else "[dim]-[/]" for why in served.values()))
    print_table(console, choice)
    console.print(
        "[dim]xmemk.explain(...) gives the reason for each call; backend='auto' takes the first that serves.[/]"
    )


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
