"""``xmemk weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .arguments import refuse
from .progress import Progress
from .terminal import console_for, print_table


def weights(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="XMem, or another name that --list shows.")] = "XMem",
    folder: Annotated[Path | None, typer.Option(help="Where to keep it; default: the user's cache.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what there is, and fetch nothing.")] = False,
) -> None:
    """Download a trained network from XMem's authors, or say where it is.

    A download that was interrupted goes on. `xmemk segment` and `xmemk eval` find what is there.
    """
    from .. import weights as released

    console = console_for()
    into = released.folder() if folder is None else folder
    if list_:
        refuse(context, "--list shows all there are; leave it out", "name")
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
        print_table(console, table)
        console.print(f"from {released.ADDRESS} into {into}; {released.LICENCE}")
        return
    console.print(f"{released.LICENCE}")
    with Progress(f"fetching {name}") as bar:

        def progress(done: int, total: int | None) -> None:
            bar.update(done / 1e6, None if total is None else total / 1e6, "MB")

        file = released.fetch(name, into, address=released.ADDRESS, progress=progress)
    console.print(f"{file}: {file.stat().st_size / 1e6:.0f} MB, checksum as wanted")
