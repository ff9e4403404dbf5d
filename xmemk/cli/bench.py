"""``xmemk bench``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def bench(
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="All cases, sizes and lengths, half an hour on two cores; without it the most important ones.",
        ),
    ] = False,
    results: Annotated[
        list[Path] | None, typer.Option(help="Draw the page from this result file and run nothing; may be given again.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page; new results go beside it, at the end of <name>.jsonl.")] = Path(
        "out/bench.html"
    ),
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the best there is.")] = None,
) -> None:
    """Measure xmemk beside what you would use otherwise, on this machine.

    Prints a table and writes one page with plots, all figures, and what they do not say.
    """
    import torch

    try:
        from xmemk.benchmarks import bench as benchmarks
        from xmemk.benchmarks.report import terminal
    except ModuleNotFoundError as missing:
        raise RuntimeError(f"bench needs {missing.name}: pip install 'xmemk[demo]'") from missing
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device: wanted {'cpu or cuda' if torch.cuda.is_available() else 'cpu'}, got {device!r}")
    console = Console(highlight=False, soft_wrap=True)
    failed: list[str] = []
    earlier = 0
    if results:
        files, commands = (
            results,
            [shlex.join(["xmemk", "bench", *(word for file in results for word in ("--results", str(file)))])],
        )
    else:
        save = out.with_suffix(".jsonl")
        if save == out:
            raise ValueError(f"--out: wanted a page, such as bench.html, got {out}: new results go there")
        save.parent.mkdir(parents=True, exist_ok=True)
        before = save.stat().st_size if save.exists() else 0
        earlier = len(save.read_text(encoding="utf-8").splitlines()) if before else 0
        chosen = benchmarks.steps(full, device)
        failed = benchmarks.run(chosen, save, console.print)
        if not save.exists() or save.stat().st_size == before:
            raise RuntimeError("; ".join(failed) or "no step wrote results")
        files, commands = (
            [save],
            [f"xmemk bench{' --full' if full else ''} --device {device}", *benchmarks.repeat(chosen, save)],
        )
    for machine in benchmarks.make_page(files, out, commands, failed, after=earlier):
        console.print()
        console.print(terminal.summary(machine))
    console.print(f"look at {out}")
    for sentence in failed:
        console.print(f"[bold red]failed:[/] {sentence}")
    if failed:
        raise typer.Exit(1)
