"""``xmemk demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .arguments import Colours, Threshold, typed
from .progress import Progress
from .terminal import console_for


def demo(
    context: typer.Context,
    video: Annotated[Path | None, typer.Option(help="Another video than the bundled clip; needs --mask.")] = None,
    mask: Annotated[Path | None, typer.Option(help="PNG of labels (0 background, 1.. objects) at --frame.")] = None,
    frame: Annotated[int | None, typer.Option(help="The mask's frame, 0-based.")] = None,
    threshold: Threshold = None,
    colours: Colours = None,
    out: Annotated[Path, typer.Option(help="Folder for masks, video, pictures and page.")] = Path("out/demo"),
    backend: Annotated[str, typer.Option(help="Backend of the memory reads.")] = "auto",
    original_every: Annotated[
        int, typer.Option(min=0, help="Do every n-th read with the original's formulation, too; 0: none.")
    ] = 8,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Follow an object through a real clip with XMem's memory, with every read checked.

    Writes masks, an overlay video, a contact sheet, and a page that says what ran, how fast it was,
    and how exact.
    """
    try:
        from ..data.label_rules import LabelRule
        from ..demo.run import DemoJob, run
    except ModuleNotFoundError as missing:
        raise RuntimeError(f"the demo needs {missing.name}: pip install 'xmemk[demo]'") from missing
    job = DemoJob(
        rule=LabelRule.parse(threshold, colours),
        out=out,
        backend=backend,
        original_every=original_every,
        command=_command(context),
    )
    if video is not None:
        if mask is None:
            raise ValueError("--video needs --mask, the objects to follow at --frame (default 0)")
        job.video, job.mask, job.start = video, mask, frame or 0
    elif mask is not None or frame is not None:
        job.mask, job.start = mask or job.mask, job.start if frame is None else frame
    console = console_for(stderr=json_)
    with Progress("following") as progress:

        def followed(done: int, total: int | None, ops: Any) -> None:
            note = f"{1000 * ops.reads[-1].seconds:.0f} ms a read, {ops.reads[-1].tokens} tokens" if ops.reads else ""
            progress.update(done, total, note)

        report, totals = run(job, followed)
    if json_:
        typer.echo((out / "report.json").read_text())
        return
    _print(console, report, totals, out)


def _print(console: Console, report: Any, totals: Any, out: Path) -> None:
    reads = len(totals.reads)
    console.print(
        f"{report.frames} frames at {report.frames_per_second:.1f} fps, {report.objects} object(s), "
        f"memory read by backend '{report.read_backend}' in {1000 * totals.seconds / max(1, reads):.0f} ms on average"
    )
    if totals.speedup:
        ours, theirs = totals.seconds_compared / totals.compared, totals.original_seconds / totals.compared
        line = (
            f"beside it, {totals.compared} of the reads by the original's formulation: {1000 * theirs:.0f} ms against "
            f"{1000 * ours:.0f} ms, {totals.speedup:.1f} times as long"
        )
        if totals.original_peak_bytes is not None:
            line += f"; {totals.original_peak_bytes / 1e6:.0f} MB more memory against {totals.peak_bytes / 1e6:.0f} MB"
        console.print(line)
    console.print(
        f"every read checked at {report.checked_queries} queries: largest error against the float64 oracle "
        f"{totals.error:.2g}, {100 * totals.share:.0f} % of what is allowed; "
        f"{report.memory.rsplit(';', 1)[1].strip()}"
    )
    for note in report.notes:
        console.print(note, markup=False)
    console.print(
        f"look at {out / 'index.html'}, {out / 'contact.png'}, {out / 'overlay.mp4'}; masks are in {out / 'masks'}"
    )


def _command(context: typer.Context) -> str:
    """The command line, with the names of files but not their folders."""
    words = ["xmemk demo"]
    for name, option in typed(context, *context.params).items():
        value = context.params[name]
        words.append(option if value is True else f"{option} {value.name if name in ('video', 'mask') else value}")
    return " ".join(words)
