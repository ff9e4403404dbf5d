"""``xmemk weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table


def weights(
    name: Annotated[str, typer.Argument(help="XMem, or another name that --list shows.")] = "XMem",
    folder: Annotated[Path | None, typer.Option(help="Where to keep it; default: the user's cache.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what there is, and fetch nothing.")] = False,
) -> None:
    """Download a trained network from XMem's authors, or say where it is.

    A download that was interrupted goes on. `xmemk segment` and `xmemk eval` find what is there.
    """
    from .. import weights as released

    console = Console(highlight=False, soft_wrap=True)
    into = released.folder() if folder is None else folder
    if list_:
        table = Table(box=None, pad_edge=False)
        for column in ("name", "size", "checksum", "here", "what it is"):
            table.add_column(column)
        for release in released.RELEASES.values():
            table.add_row(
                release.name,
                "" if release.size is None else f"{release.size / 1e6:.0f} MB",
                "of the first download" if release.sha256 is None else f"{release.sha256[:12]}...",
                "yes" if (into / release.file).is_file() else "no",
                release.about,
            )
        console.print(table)
        console.print(f"from {released.ADDRESS} into {into}; {released.LICENCE}")
        return
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console.print(f"{released.LICENCE}")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        file = released.fetch(name, into, address=released.ADDRESS, progress=progress)
    console.print(f"{file}: {file.stat().st_size / 1e6:.0f} MB, checksum as wanted")
