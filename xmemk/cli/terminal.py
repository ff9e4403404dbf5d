"""What the commands print, at the width of the terminal."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_TEXT = 30  # columns that a last column of sentences wants at least


def console_for(*, stderr: bool = False, **options: Any) -> Console:
    """A console that breaks lines between words on a terminal, and not at all in a file or pipe."""
    console = Console(stderr=stderr, highlight=False, **options)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.soft_wrap, console.width = True, 10_000
    return console


def print_table(console: Console, table: Table) -> None:
    """Prints a table whose last column may be of sentences.

    Where its columns do not fit beside one another, each row becomes a block of lines.
    """
    columns = [[Text.from_markup(str(cell)) for cell in column.cells] for column in table.columns]
    names = [Text.from_markup(str(column.header)) for column in table.columns]
    widths = [max(cell.cell_len for cell in (name, *cells)) for name, cells in zip(names, columns)]
    needed = sum(widths[:-1]) + min(widths[-1], _TEXT) + 2 * len(widths)
    if needed <= console.width:
        for column in table.columns[:-1]:
            column.no_wrap = True
        console.print(table)
        return
    if table.title:
        console.print(table.title)
    for row in zip(*columns):
        console.print(row[0])
        for name, cell in zip(names[1:], row[1:]):
            if cell:
                console.print(Text("  ").append_text(name).append(" " if name else "").append_text(cell))
