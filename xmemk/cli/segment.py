"""``xmemk segment``."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from .arguments import (
    Colours,
    Compile,
    Device,
    Half,
    Interrupted,
    Size,
    Threshold,
    Weights,
    device_named,
    narrow_type,
    refuse,
)
from .progress import Progress
from .terminal import console_for, print_table

if TYPE_CHECKING:
    from ..network import XMem
    from ..video.job import Prepared
    from ..video.segment import SegmentReport
    from ..video.tracker import Tracker


def segment(
    context: typer.Context,
    video: Annotated[
        str,
        typer.Argument(
            help="A video file or a folder of images; or a stream: - for standard input, an address, a camera such "
            "as /dev/video0, a named pipe."
        ),
    ],
    mask: Annotated[
        Path,
        typer.Option(
            help="PNG of labels (0 background, 1.. objects) for --start, or a folder of them named as frames; "
            "of the video's size or shape."
        ),
    ],
    threshold: Threshold = None,
    colours: Colours = None,
    weights: Weights = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/segment"),
    start: Annotated[int, typer.Option(min=0, help="The mask's frame, 0-based.")] = 0,
    direction: Annotated[
        Literal["forward", "backward", "both"], typer.Option(help="Where to go from the mask's frame.")
    ] = "forward",
    size: Size = 480,
    mem_every: Annotated[int, typer.Option(min=1, help="Every how many frames one is remembered.")] = 5,
    top_k: Annotated[int, typer.Option(min=1, help="How many memory tokens each pixel reads.")] = 30,
    long_term: Annotated[int, typer.Option(min=0, help="Tokens of long-term memory; 0: none, memory grows.")] = 10000,
    object_chunk: Annotated[
        int | None, typer.Option(min=1, help="Objects that the network handles at a time; fewer take less memory.")
    ] = None,
    device: Device = None,
    half: Half = None,
    compile_: Compile = False,
    missing: Annotated[
        Literal["error", "skip"],
        typer.Option(help="A number missing in a folder of images: an error, or left out."),
    ] = "error",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="FFmpeg's name of a stream's format: rawvideo, mjpeg, v4l2; default: recognised."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for FFmpeg's reader of a stream, such as video_size=640x480; may be repeated."),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="Also write overlay.mp4.")] = True,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Also write a video with the overlay beside the original.")
    ] = False,
    soft: Annotated[
        bool, typer.Option("--soft", help="Also write the probabilities of each object in 8 bits: PNGs in soft.")
    ] = False,
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Also write frames whose background is transparent: PNGs in cutouts.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results that are in the folder.")] = False,
    account: Annotated[bool, typer.Option("--account", help="Print where the time of a frame went.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Follow the objects of a mask through a video.

    Writes masks/<frame>.png (palette PNGs of the mask's labels) and overlay.mp4. An interrupted run
    is resumed by the same command; a finished one is not done again. Videos keep their times, their
    sound and the shape of their pixels. A stream is followed as it comes, in constant memory, and
    cannot be resumed.
    """
    try:
        from ..data.label_rules import LabelRule
        from ..data.live import StreamSource, is_stream, open_stream
        from ..data.source import open_source
        from ..video.job import SegmentJob, prepare
    except ModuleNotFoundError as absent:
        raise RuntimeError(f"segment needs {absent.name}: pip install 'xmemk[video]'") from absent
    from ..network import XMem, checkpoint
    from ..reference.config import MemoryConfig
    from ..video.resume import weights_digest
    from ..weights import find

    # Everything is checked before the network is built.
    if account and json_:
        raise ValueError("--account: the JSON has its figures; leave out --account or --json")
    if mask.is_dir():
        refuse(context, "the masks of a folder are named as their frames; leave it out", "start")
    live = is_stream(video)
    if not live:
        refuse(context, f"is for streams, and {video} is none; leave it out", "format_", "option")
    elif direction != "forward":
        raise ValueError(f"--direction: {video} is a stream, which comes once and forwards; leave it out")
    if live or not Path(video).is_dir():
        refuse(context, f"is for a folder of images, and {video} is none; leave it out", "missing")
    rule = LabelRule.parse(threshold, colours)
    device = device_named(device)
    config = MemoryConfig(
        top_k=top_k,
        mem_every=mem_every,
        enable_long_term=long_term > 0,
        max_long_term_elements=long_term or MemoryConfig.max_long_term_elements,
    )
    source = open_stream(video, format_, _pairs(option or [])) if live else open_source(Path(video), missing=missing)
    job = SegmentJob(
        source,
        mask,
        out,
        start=start,
        rule=rule,
        direction=direction,
        size=size,
        config=config,
        autocast=narrow_type(device, half),
        object_chunk=object_chunk,
        soft=soft,
        cutout=cutout,
        overwrite=overwrite,
    )
    console = console_for(stderr=json_)
    for sentence in source.notes:
        console.print(sentence, markup=False)
    kinds = [kind for kind, asked in (("overlay", overlay), ("side-by-side", side_by_side)) if asked]
    paths = {kind: out / f"{kind}.mp4" for kind in kinds}
    with Progress(f"checking {source.path}") as progress:
        file = weights or find()
        prepared = prepare(
            job,
            lambda: weights_digest(checkpoint.read(file)),
            lambda done, total: progress.update(done / 1e6, total / 1e6, "MB"),
        )
        if prepared.legs[0].rule.note:
            console.print(prepared.legs[0].rule.note, markup=False)

        def network() -> XMem:
            progress.begin(f"loading {file}", blocks=True)
            loaded = XMem.from_checkpoint(file, device).tuned(compile=compile_)
            progress.begin("segmenting")
            return loaded

        report, notes = (_streamed if isinstance(source, StreamSource) else _drawn)(network, prepared, paths, progress)
    if json_:
        typer.echo(json.dumps({**asdict(report), "frames_per_second": report.frames_per_second, "notes": notes}))
        return
    _print(console, report, out, paths, account)
    for sentence in notes:
        console.print(sentence, markup=False)


def _drawn(
    network: Callable[[], XMem], prepared: Prepared, paths: dict[str, Path], progress: Progress
) -> tuple[SegmentReport, list[str]]:
    """Follows a video that can be read again; draws its videos when all masks are there."""
    from ..data.overlay import draw_videos
    from ..data.whole_files import is_result
    from ..video.segment import segment as run

    source, notes = prepared.source, list[str]()
    counter = _Counter(progress)

    def draw(masks: Path, first: int, last: int) -> None:
        absent = {kind: p for kind, p in paths.items() if prepared.finished is None or not is_result(p)}
        if not absent:
            return
        progress.begin(f"writing {' and '.join(path.name for path in absent.values())}")
        count = last - first + 1
        until = last if prepared.legs[0].backwards else None
        notes.extend(draw_videos(absent, source, masks, first, until, lambda done: progress.update(done, count)))

    try:
        return run(network, prepared, counter.update, draw), notes
    except KeyboardInterrupt:
        raise Interrupted(f"{counter.words()}; the same command goes on from there") from None


def _streamed(
    network: Callable[[], XMem], prepared: Prepared, paths: dict[str, Path], progress: Progress
) -> tuple[SegmentReport, list[str]]:
    """Follows a stream and draws its videos meanwhile. They end where the stream is stopped."""
    from ..data.overlay import DrawnVideos
    from ..video.segment import segment as run

    counter = _Counter(progress)
    with DrawnVideos(paths, prepared.source) as videos:
        try:
            report = run(network, prepared, counter.update, each=videos.write)
        except (KeyboardInterrupt, ValueError) as error:
            report, stopped = None, error
    if report is not None:
        return report, videos.notes
    if isinstance(stopped, KeyboardInterrupt):
        raise Interrupted(f"{counter.words()}, with masks in {prepared.results.masks}") from None
    raise stopped


class _Counter:
    """Shows the progress of frames, and remembers it for when the run is interrupted."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._clock: deque[tuple[int, float]] = deque(maxlen=20)
        self._done = 0
        self._total: int | None = None

    def update(self, done: int, total: int | None, tracker: Tracker) -> None:
        from ..measure.peak import resident_bytes

        self._done, self._total = done, total
        self._clock.append((done, time.monotonic()))
        (before, then), (_, now) = self._clock[0], self._clock[-1]
        rate = f"{(done - before) / (now - then):.1f} fps, " if now > then else ""
        memory = resident_bytes(tracker.device)
        memory_words = "" if memory is None else f"{memory / 1e6:.0f} MB, "
        self._progress.update(done, total, f"{rate}{memory_words}{len(tracker.objects)} object(s)")

    def words(self) -> str:
        return f"{self._done}{'' if self._total is None else f' of {self._total}'} frames are done"


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in options]
    wrong = next((text for text, (name, equals, _) in zip(options, pairs) if not name or not equals), None)
    if wrong is not None:
        raise ValueError(f"--option: wanted NAME=VALUE, got {wrong!r}")
    return {name: value for name, _, value in pairs}


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


def _print(console: Console, report: SegmentReport, out: Path, paths: dict[str, Path], account: bool) -> None:
    look = f", look at {' and '.join(str(path) for path in paths.values())}" if paths else ""
    if report.resumed == report.frames:
        done = f"{report.frames} frames were finished by an earlier run; --overwrite does them again"
        console.print(done + ("; there is no account of it" if account else ""))
    else:
        resumed = f" ({report.resumed} of them by an earlier run)" if report.resumed else ""
        console.print(f"{report.frames} frames{resumed}, {report.frames_per_second:.1f} fps")
        if account:
            print_table(console, _account(report))
        else:
            stages = sorted(report.seconds.items(), key=lambda item: -item[1])
            shares = [(name, seconds / report.wall) for name, seconds in stages]
            words = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares if share > 0.005)
            console.print(f"time: {words}")
    for file in report.unused:
        console.print(f"{file}: was not used, the video ends with frame {report.last}", markup=False)
    console.print(f"masks are in {out / 'masks'}{look}", markup=False)
