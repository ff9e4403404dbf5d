"""``xmemk segment``."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..video.segment import SegmentReport
    from ..video.tracker import Tracker


def segment(
    video: Annotated[Path, typer.Argument(help="A video file, or a folder of images.")],
    mask: Annotated[
        Path,
        typer.Option(
            help="PNG of labels (0 background, 1.. objects) for --start, or a folder of them named as frames; "
            "of the video's size or shape."
        ),
    ],
    weights: Annotated[
        Path | None, typer.Option(help="A released file; default: the XMem.pth that `xmemk weights` fetched.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out"),
    start: Annotated[int, typer.Option(min=0, help="The mask's frame, 0-based.")] = 0,
    size: Annotated[int, typer.Option(min=0, help="Shorter side that the network sees; 0: the video's own.")] = 480,
    mem_every: Annotated[int, typer.Option(min=1, help="Every how many frames one is remembered.")] = 5,
    top_k: Annotated[int, typer.Option(min=1, help="How many memory tokens each pixel reads.")] = 30,
    long_term: Annotated[int, typer.Option(min=0, help="Tokens of long-term memory; 0: none, memory grows.")] = 10000,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the best there is.")] = None,
    half: Annotated[bool | None, typer.Option("--half/--full", help="16-bit convolutions; default on a GPU.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile; takes minutes at first.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="Also write overlay.mp4.")] = True,
    account: Annotated[bool, typer.Option("--account", help="Print where the time of a frame went.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Follow the objects of a mask through a video.

    Writes masks/<frame>.png (palette PNGs of the mask's labels) and overlay.mp4. An interrupted run
    is resumed.
    """
    import torch

    try:
        from ..data.mask_files import find_masks
        from ..data.overlay import write_overlay
        from ..data.source import open_source
        from ..measure.peak import resident_bytes
        from ..video.segment import SegmentJob, expect_out
        from ..video.segment import segment as run
    except ModuleNotFoundError as missing:
        raise RuntimeError(f"segment needs {missing.name}: pip install 'xmemk[video]'") from missing
    from ..network import XMem
    from ..reference.config import MemoryConfig
    from ..weights import find

    device = device_named(device)
    half = device.startswith("cuda") if half is None else half
    narrow = torch.float16 if device.startswith("cuda") else torch.bfloat16
    source = open_source(video)
    expect_out(SegmentJob(video, mask, out), source)  # input is checked before the weights are loaded
    find_masks(mask, source, start)
    network = XMem.from_checkpoint(weights or find(), device).tuned(compile=compile_)
    config = MemoryConfig(
        top_k=top_k,
        mem_every=mem_every,
        enable_long_term=long_term > 0,
        max_long_term_elements=long_term or MemoryConfig.max_long_term_elements,
        hidden_dim=network.config.hidden_dim,
    )
    job = SegmentJob(video, mask, out, start=start, size=size, config=config, autocast=narrow if half else None)
    console = Console(stderr=json_, highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("segmenting", total=None, note="")
        clock: deque[tuple[int, float]] = deque(maxlen=20)

        def progress(done: int, total: int | None, tracker: Tracker) -> None:
            clock.append((done, bar.get_time()))
            (before, then), (_, now) = clock[0], clock[-1]
            note = f"{(done - before) / (now - then):.1f} fps, " if now > then else ""
            note += f"{_megabytes(resident_bytes(tracker.device))}, {len(tracker.objects)} object(s)"
            bar.update(task, completed=done, total=total, note=note)

        def draw(masks: Path, first: int) -> None:
            bar.update(task, description="writing overlay.mp4", note="")
            write_overlay(out / "overlay.mp4", source, masks, first)

        report = run(network, job, progress, draw if overlay else None)
    if json_:
        typer.echo(json.dumps({**asdict(report), "frames_per_second": report.frames_per_second}))
        return
    _print(console, report, out, overlay, account)


def device_named(name: str | None) -> str:
    """The device of --device, by default the best. Raises ValueError where it is missing."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: wanted cpu or cuda, got {name!r}") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"--device: PyTorch finds {count} CUDA device(s), no {name}; `xmemk doctor` says more")
    return name


def _account(report: SegmentReport) -> Table:
    """A line for each stage, longest first; times of a frame are averages over all frames."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("calls", "ms a call", "ms a frame", "share"):
        table.add_column(name, justify="right")
    frames, rest = max(report.frames - report.resumed, 1), report.wall - sum(report.seconds.values())
    for stage, seconds in sorted(report.seconds.items(), key=lambda item: -item[1]):
        calls = report.calls[stage]
        cells = (f"{calls}", f"{1000 * seconds / calls:.1f}", f"{1000 * seconds / frames:.1f}")
        table.add_row(stage, *cells, f"{100 * seconds / report.wall:.1f} %")
    table.add_row("the loop", "", "", f"{1000 * rest / frames:.1f}", f"{100 * rest / report.wall:.1f} %")
    table.add_row("a frame", "", "", f"{1000 * report.wall / frames:.1f}", "")
    return table


def _print(console: Console, report: SegmentReport, out: Path, overlay: bool, account: bool) -> None:
    resumed = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
    console.print(f"{report.frames} frames{resumed}, {report.frames_per_second:.1f} fps")
    if account:
        console.print(_account(report))
    else:
        stages = sorted(report.seconds.items(), key=lambda item: -item[1])
        shares = [(name, seconds / report.wall) for name, seconds in stages]
        console.print("time: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares if share > 0.005))
    console.print(f"masks are in {out / 'masks'}" + (f", look at {out / 'overlay.mp4'}" if overlay else ""))


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f} MB"
