"""``xmemk eval``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from .arguments import Compile, Device, Half, Size, device_named, narrow_type, refuse
from .progress import Progress
from .terminal import console_for, print_table

if TYPE_CHECKING:
    from ..evaluation.layouts import Dataset, Video
    from ..evaluation.metrics import Judgement
    from ..evaluation.run import Cost
    from ..video.tracker import Tracker


def evaluate(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="A released file; default, without --results: the XMem.pth that `xmemk weights` fetched."),
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Judge the masks in this folder instead of making some.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/eval"),
    layout: Annotated[
        str | None,
        typer.Option(help="davis2016, davis2017, youtube, lvos, mose, long or generic; default: recognised."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="val, test-dev, ...; default: the first there is.")] = None,
    videos: Annotated[list[str] | None, typer.Option(help="Only these, by commas; may be given again.")] = None,
    size: Size = 480,
    mem_every: Annotated[
        int | None, typer.Option(min=1, help="Every how many frames one is remembered; default 5, Long-time Video 10.")
    ] = None,
    policy: Annotated[str, typer.Option(help="The memory: xmem, or a baseline; `--policy help` lists them.")] = "xmem",
    repeat: Annotated[int, typer.Option(min=1, help="Play each video so many times, back and forth.")] = 1,
    all_frames: Annotated[
        bool | None, typer.Option("--all-frames/--given-frames", help="YouTube-VOS: all frames, or every fifth.")
    ] = None,
    resolution: Annotated[str | None, typer.Option(help="DAVIS: 480p or Full-Resolution.")] = None,
    rule: Annotated[
        str | None, typer.Option(help="Judge by 'davis' (first and last annotation left out) or 'all' annotations.")
    ] = None,
    zip_: Annotated[
        Path | None, typer.Option("--zip", help="Also write this archive for the dataset's server.")
    ] = None,
    missing: Annotated[
        Literal["error", "skip"], typer.Option(help="A number missing among a video's images: an error, or left out.")
    ] = "error",
    device: Device = None,
    half: Half = None,
    compile_: Compile = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Follow the objects of a dataset's videos, and judge the results where there is ground truth.

    Writes <out>/<video>/<frame>.png and <out>/summary.json. Finished videos are not run again. With
    --results, existing masks are judged.
    """
    try:
        from ..evaluation.layouts import open_dataset
        from ..evaluation.metrics import RULES, judge
        from ..evaluation.pack import expect_archive, pack
        from ..evaluation.policies import POLICIES
        from ..evaluation.report import summary
    except ModuleNotFoundError as absent:
        raise RuntimeError(f"eval needs {absent.name}: pip install 'xmemk[eval]'") from absent

    from ..weights import find

    if policy == "help":
        for name, make in POLICIES.items():
            console_for().print(f"{name}: {' '.join((make.__doc__ or '').split())}", markup=False)
        return
    if policy not in POLICIES:
        raise ValueError(f"--policy: wanted one of {', '.join(POLICIES)}, or help, got {policy!r}")
    neither_nor_both = "wanted either --weights, to make masks, or --results, to judge some"
    if weights is not None and results is not None:
        raise ValueError(neither_nor_both)
    if results is not None:
        making = ("out", "size", "mem_every", "policy", "missing", "device", "half", "compile_")
        refuse(context, "is for making masks, and --results are there already; leave it out", *making)
    device = device_named(device)
    if weights is None and results is None:
        try:
            weights = find()
        except FileNotFoundError as absent:
            raise ValueError(f"{neither_nor_both}; {absent}") from None
    if rule not in (None, *RULES):
        raise ValueError(f"--rule: wanted one of {', '.join(RULES)}, got {rule!r}")
    chosen = [name for words in videos for name in words.split(",")] if videos else None
    opened = open_dataset(dataset, layout, split, chosen, repeat=repeat, all_frames=all_frames, resolution=resolution)
    if all_frames is not None and opened.layout != "youtube":
        refuse(context, f"is for YouTube-VOS, and this is {opened.layout}; leave it out", "all_frames")
    if resolution is not None and not opened.layout.startswith("davis"):
        refuse(context, f"is for DAVIS, and this is {opened.layout}; leave it out", "resolution")
    if split is not None and opened.split is None:
        refuse(context, f"the layout {opened.layout} has no splits; leave it out", "split")
    if weights is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: wanted a folder for results, got {out}, which is a file")
    if zip_ is not None:
        expect_archive(opened, zip_, None if weights is None else out)
    console = console_for(stderr=json_)
    costs: list[Cost] = []
    with Progress("loading") as progress:
        if weights is not None:
            costs = _run(weights, opened, out, policy, size, mem_every, missing, device, half, compile_, progress)
        progress.begin("judging")
        judged = itertools.count(1)
        judgement, why = _judged(
            lambda: judge(opened, results or out, rule, lambda v: progress.update(next(judged), len(opened.videos), v)),
            must=results is not None,
        )
    report = summary(costs, judgement, opened)
    if weights is not None:
        (out / "summary.json").write_text(json.dumps(report, indent=1))
    if json_:
        typer.echo(json.dumps(report))
    else:
        print_table(console, _table(report))
        if judgement is None:
            console.print(f"not judged: {why}")
        elif judgement.unjudged:
            console.print(f"not judged, for want of annotations: {', '.join(judgement.unjudged)}")
        resumed = sum(cost.resumed for cost in costs)
        if resumed:
            console.print(f"{resumed} of {len(costs)} video(s) were finished by an earlier run, and are not run again")
        if costs:
            console.print(f"masks are in {out}; fps: the tracker and resizing, without decoding and writing")
    if zip_ is not None:
        console.print(f"{zip_}: {pack(opened, results or out, zip_)} masks")


def _run(
    weights: Path,
    dataset: Dataset,
    out: Path,
    policy: str,
    size: int,
    mem_every: int | None,
    missing: Literal["error", "skip"],
    device: str,
    half: bool | None,
    compile_: bool,
    progress: Progress,
) -> list[Cost]:
    from ..evaluation.run import Settings, check, run
    from ..network import XMem, checkpoint
    from ..reference.config import MemoryConfig
    from ..video.resume import weights_digest

    mem_every = mem_every or (10 if dataset.layout == "long" else 5)
    settings = Settings(MemoryConfig(mem_every=mem_every), policy, size, narrow_type(device, half), missing)
    digest = weights_digest(checkpoint.read(weights))
    check(dataset, out, settings, digest, device.partition(":")[0])
    progress.begin(f"loading {weights}", blocks=True)
    network = XMem.from_checkpoint(weights, device).tuned(compile=compile_)
    order = {video.name: i for i, video in enumerate(dataset.videos)}

    def followed(video: Video, done: int, tracker: Tracker) -> None:
        if done == 1:
            progress.begin(f"{order[video.name] + 1}/{len(order)} {video.name}")
        progress.update(done, len(video.shots), f"{len(tracker.objects)} object(s)")

    return run(network, dataset, out, settings, followed, digest)


def _judged(judge: Callable[[], Judgement], *, must: bool) -> tuple[Judgement | None, str]:
    """The judgement; or None and the reason why there is none, unless it ``must`` succeed."""
    from ..evaluation.layouts import DatasetError

    try:
        return judge(), ""
    except (DatasetError, RuntimeError) as error:
        if must:
            raise
        return None, str(error)


def _table(report: dict[str, Any]) -> Table:
    """A line for each video, for each of its objects where it has several, and for the whole."""
    rule = {"davis": ", first and last annotation left out", "all": ", all annotations", None: ""}[report["rule"]]
    split = f" {report['split']}" if report["split"] else ""
    table = Table(title=f"{report['layout']}{split}{rule}", title_justify="left", box=None, pad_edge=False)
    table.add_column("video", no_wrap=True)
    names = {"jf": "J&F", "j": "J", "f": "F", "frames": "frames", "fps": "fps", "growth": "growth KB/frame"}
    for name in (*names.values(), "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["videos"]:
        table.add_row(row["video"], *_cells(row))
        if len(row["objects"]) > 1:
            for one in row["objects"]:
                table.add_row(f"[dim]  object {one['label']}[/]", *_cells(one))
    table.add_section()
    table.add_row("[bold]all[/]", *_cells(report["whole"]))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    def cell(name: str, form: str, unit: float = 1) -> str:
        value = row.get(name)
        return "" if value is None else format(value / unit, form)

    scores = [cell(name, ".1f") for name in ("jf", "j", "f")]
    return [*scores, cell("frames", ".0f"), cell("fps", ".1f"), cell("growth", ".1f", 1e3), cell("peak", ".0f", 1e6)]
