"""``xmemk bench``."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .arguments import refuse


def bench(
    context: typer.Context,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="All cases, sizes and lengths, half an hour on two cores; without it the most important ones.",
        ),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(help="About how long it may take; below 60 the functions alone are measured.", min=5.0),
    ] = None,
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

    from xmemk.measure import load

    try:
        from xmemk.benchmarks import bench as benchmarks
        from xmemk.benchmarks.report import terminal
    except ModuleNotFoundError as missing:
        raise RuntimeError(f"bench needs {missing.name}: pip install 'xmemk[demo]'") from missing
    if results:
        refuse(context, "is for measuring, and --results are there already; leave it out", "full", "seconds", "device")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"--device: wanted {'cpu or cuda' if torch.cuda.is_available() else 'cpu'}, got {device!r}")
    console = Console(highlight=False)

    def tell(text: str) -> None:
        terminal.print_line(console, text)

    failed: list[str] = []
    earlier = 0
    if results:
        files = results
        commands = [shlex.join(["xmemk", "bench", *(word for file in results for word in ("--results", str(file)))])]
    else:
        save = out.with_suffix(".jsonl")
        if save == out:
            raise ValueError(f"--out: wanted a page, such as bench.html, got {out}: new results go there")
        save.parent.mkdir(parents=True, exist_ok=True)
        before = save.stat().st_size if save.exists() else 0
        earlier = len(save.read_text(encoding="utf-8").splitlines()) if before else 0
        now = load.look()
        disturbed = f"other work disturbs: {now}. Figures will be slower and less steady than on a quiet machine."
        tell(disturbed if now.disturbs else f"the machine is quiet: {now}")
        chosen = benchmarks.steps(full, device, seconds)
        if seconds is not None:
            left_out = ", and without the functions' tests" if seconds < benchmarks.SHORT else ""
            tell(f"about {seconds:.0f} s, as asked{left_out}: what they do not suffice for is left out")
        start = time.monotonic()
        failed = benchmarks.run(chosen, save, tell)
        tell(f"measured for {time.monotonic() - start:.0f} s")
        if not save.exists() or save.stat().st_size == before:
            raise RuntimeError("; ".join(failed) or "nothing was measured in the time given: give more --seconds")
        files = [save]
        options = f"{' --full' if full else ''}{'' if seconds is None else f' --seconds {seconds:g}'}"
        commands = [f"xmemk bench{options} --device {device}", *benchmarks.repeat(chosen, save)]
    for machine in benchmarks.make_page(files, out, commands, failed, after=earlier):
        for table in terminal.summaries(machine, console.width):
            console.print()
            console.print(table, crop=False)
    tell(f"look at {out}")
    for sentence in failed:
        tell(f"failed: {sentence}")
    if failed:
        raise typer.Exit(1)
