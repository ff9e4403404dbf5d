"""The demo as one job: decode, follow, measure, and write masks, video, pictures and page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..backends import BACKENDS
from ..data import BUNNY
from ..data.label_rules import LabelRule
from ..data.masks import AUTOMATIC, MaskError, read_object_mask, write_mask
from ..data.overlay import overlay
from ..data.video import VideoInfo, probe, read_timed_frames
from ..data.whole_files import expect_folder, results_folder
from ..measure import machine
from ..memory import Memory
from ..reference.config import MemoryConfig
from ..version import __version__
from .checked_functions import CheckedFunctions
from .film import LEAD, Film
from .memory_view import MemoryFrames
from .page import write_page
from .pictures import Spread, captioned, plots, sheet
from .records import ReadTotals, UpkeepRecord, totals
from .tint import tints
from .tracker import MEMORY_CONFIG, DemoTracker

Progress = Callable[[int, int | None, CheckedFunctions], None]

ATTRIBUTION = (
    "The clip is cut from Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org, licensed CC BY 3.0; "
    "the tint is ours."
)
FEATURES = (
    "none of them trained: colour of the cell and of its surroundings, slopes in four directions, position; the value "
    "of a cell is its patch of the mask, and a guided filter finds the edge"
)
_SHOWN = 12
_SMALLEST = 16  # pixels each way
_UNFINISHED = ".unfinished-"  # begins the name of a run's own folder
_PRODUCTS = ("masks", "overlay.mp4", "moving.webp", "contact.png", "memory.webp", "index.html", "report.json")


@dataclass
class DemoJob:
    """One video to follow objects through.

    mask: of frame ``start``, which is 0-based. The video is resized to the size of the mask.
    rule: how the values of the mask become labels.
    original_every: see :class:`CheckedFunctions`. command: the command line, for the report.
    """

    video: Path = BUNNY / "clip.mp4"
    mask: Path = BUNNY / "00040.png"
    start: int = 40
    out: Path = Path("out/demo")
    backend: str = "auto"
    original_every: int = 8
    command: str = "xmemk demo"
    rule: LabelRule = AUTOMATIC


@dataclass
class DemoReport:
    """What was done and measured; ``report.json`` has the same fields."""

    version: str
    command: str
    video: str
    attribution: str
    objects: int
    first_frame: int
    last_frame: int
    frames: int
    shown: int
    read_backend: str
    checked_queries: int
    oracle_verdict: str
    features: str
    memory: str
    machine: dict[str, str]
    stages: dict[str, float]
    check_seconds: float
    frames_per_second: float
    upkeep: dict[str, UpkeepRecord]
    notes: list[str] = field(default_factory=list)


class Stages:
    """Seconds of each part of the job."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, start: float) -> float:
        """Adds the seconds since ``start`` to a part, and returns the time now."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - start
        return now


def prepare(job: DemoJob) -> tuple[VideoInfo, Tensor]:
    """The video's data and the labels [H, W].

    Raises VideoError, MaskError, or ValueError where the parts of the job do not fit one another.
    """
    info = probe(job.video)
    labels = read_object_mask(job.mask, job.rule.fitted([job.mask]))
    height, width = labels.shape
    # A mask may have another size than the video, but must have its aspect ratio, to a pixel.
    off = max(abs(width - info.width * height / info.height), abs(height - info.height * width / info.width))
    if off > 1.0 or min(height, width) < _SMALLEST:
        raise MaskError(
            f"{job.mask}: is {width}x{height}, which is not the size of the video ({info.width}x{info.height}) "
            f"nor that size scaled to at least {_SMALLEST} pixels"
        )
    if job.start < 0 or (info.frames is not None and job.start >= info.frames):
        raise ValueError(f"frame {job.start}: {job.video} has frames 0 to {(info.frames or 0) - 1}")
    if info.frames is not None and job.start == info.frames - 1:
        raise ValueError(f"frame {job.start}: is the last of {job.video}, there is nothing to follow")
    if job.backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend: wanted 'auto' or one of {', '.join(BACKENDS)}, got {job.backend!r}")
    expect_folder(job.out, _PRODUCTS)
    products = {(job.out / name).resolve() for name in _PRODUCTS}
    for file in (job.video.resolve(), job.mask.resolve()):
        if products & {file, *file.parents}:
            raise ValueError(f"{file}: would be overwritten by the results; choose another --out than {job.out}")
    return info, labels


def run(job: DemoJob, progress: Progress = lambda done, total, ops: None) -> tuple[DemoReport, ReadTotals]:
    """Does the job and writes its results to ``job.out``.

    Results of an earlier run are replaced when all new ones are complete. Other files stay.
    """
    info, labels = prepare(job)
    new = not job.out.exists()
    try:
        with results_folder(job.out, _PRODUCTS):
            for leftover in job.out.glob(f"{_UNFINISHED}*"):  # of killed runs
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=job.out) as folder:
                result = _run(job, info, labels, Path(folder), progress)
                _install(Path(folder), job.out)
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                job.out.rmdir()
        raise
    return result


def _install(folder: Path, out: Path) -> None:
    """Moves the finished products to ``out``; masks of the run that report.json describes go."""
    (out / "masks").mkdir(exist_ok=True)
    fresh = {mask.name for mask in (folder / "masks").iterdir()}
    for name in _masks_of(out / "report.json") - fresh:
        (out / "masks" / name).unlink(missing_ok=True)
    for name in sorted(fresh):
        os.replace(folder / "masks" / name, out / "masks" / name)
    for name in _PRODUCTS:
        if name != "masks":
            os.replace(folder / name, out / name)


def _masks_of(report: Path) -> set[str]:
    """Names of the masks that the run of this report wrote."""
    try:
        earlier = json.loads(report.read_text())
        return {f"{number:05d}.png" for number in range(earlier["first_frame"], earlier["last_frame"] + 1)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _run(
    job: DemoJob, info: VideoInfo, labels: Tensor, folder: Path, progress: Progress
) -> tuple[DemoReport, ReadTotals]:
    height, width = labels.shape
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    total = None if info.frames is None else info.frames - job.start
    (folder / "masks").mkdir()
    ops = CheckedFunctions(job.backend, job.original_every)
    memory = Memory(MemoryConfig.from_dict(MEMORY_CONFIG), functions=ops)
    stages = Stages()
    shown, remembered = Spread(_SHOWN), MemoryFrames()
    tracker: DemoTracker | None = None
    count = 0
    lead = round(LEAD * info.rate)
    colours: dict[int, tuple[int, int, int]] = {}
    line = 50.0
    began = time.perf_counter()
    still = max(0, lead - job.start)  # where too little comes before it, the first frame stands still
    with Film(folder, width, height, info, job.video, still) as film:
        for number, time_shown, image in _numbered(job, max(0, job.start - lead), (width, height), stages):
            now = time.perf_counter()
            if number < job.start:
                film.write(image, image, time_shown)
                stages.timed("writing masks and video", now)
                continue
            if tracker is None:
                colours = tints(image, labels)
                line = 100 * labels.nonzero()[:, 1].float().mean().item() / width  # through the objects
                now = stages.timed("writing masks and video", now)
            inside = ops.read_seconds + ops.check_seconds
            start = now
            if tracker is None:
                tracker = DemoTracker(memory, image.to(device), labels.to(device))
            else:
                labels = tracker.step(image.to(device)).cpu()
            now = time.perf_counter()
            read_or_checked = ops.read_seconds + ops.check_seconds - inside
            stages.seconds["features, upkeep, edges"] = (
                stages.seconds.get("features, upkeep, edges", 0.0) + now - start - read_or_checked
            )
            if tracker.remembered[0] == tracker.frame:
                remembered.add(number, tracker.remembered[1], image)
            write_mask(folder / "masks" / f"{number:05d}.png", labels)
            picture = overlay(image, labels, tints=colours)
            film.write(image, picture, time_shown)
            shown.add(number, picture)
            stages.timed("writing masks and video", now)
            count += 1
            progress(count, total, ops)
    if count < 2:
        raise ValueError(f"frame {job.start}: is the last of {job.video}, there is nothing to follow")
    stages.seconds["memory reads"] = ops.read_seconds
    read_totals = totals(ops.reads)
    sheet([captioned(f"frame {n}", picture) for n, picture in shown.chosen()]).save(folder / "contact.png")
    assert ops.last_read is not None  # two frames were followed
    view = remembered.view(number, image, labels, ops.last_consolidation, ops.last_read)
    sheet([captioned(*part) for part in (*view.usage, *view.reading)], columns=3).save(
        folder / "memory.webp", quality=80
    )
    wall = time.perf_counter() - began - ops.check_seconds
    report = DemoReport(
        version=__version__,
        command=job.command,
        video=job.video.name,
        attribution=ATTRIBUTION if job.video == BUNNY / "clip.mp4" else "",
        objects=len(memory.objects),
        first_frame=job.start,
        last_frame=job.start + count - 1,
        frames=count,
        shown=len(shown.chosen()),
        read_backend=ops.read_backend,
        checked_queries=ops.checked_queries,
        oracle_verdict=f"the largest error used {100 * read_totals.share:.0f} % of what is allowed",
        features=FEATURES,
        memory=_describe(memory),
        machine=machine.describe(),
        stages=stages.seconds,
        check_seconds=ops.check_seconds,
        frames_per_second=count / wall,
        upkeep=ops.upkeep,
        notes=film.notes,
    )
    (folder / "report.json").write_text(json.dumps(asdict(report) | {"totals": asdict(read_totals)}, indent=2))
    write_page(
        folder / "index.html",
        report,
        read_totals,
        folder,
        line,
        view,
        plots(read_totals.reads, job.start + 1),
    )
    return report, read_totals


def _numbered(
    job: DemoJob, number: int, size: tuple[int, int], stages: Stages
) -> Iterator[tuple[int, Fraction, Tensor]]:
    """The video's frames from ``number`` on: their numbers, times in seconds, and images."""
    frames = read_timed_frames(job.video, size, number)
    while True:
        start = time.perf_counter()
        frame = next(frames, None)
        stages.timed("decoding and resizing", start)
        if frame is None:
            return
        yield number, *frame
        number += 1


def _describe(memory: Memory) -> str:
    c = memory.config
    return (
        f"a frame every {c.mem_every}; {c.min_mid_term_frames} to {c.max_mid_term_frames} frames of working memory; "
        f"{c.num_prototypes} prototypes a consolidation, at most {c.max_long_term_elements} long-term tokens; "
        f"top-k {c.top_k}; {memory.consolidations} consolidations and {memory.evictions} evictions happened"
    )
