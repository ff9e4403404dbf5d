"""Segmenting a whole video from its first mask, with a few frames in memory at any time.

Each mask becomes a file when its frame is done. Every so many frames the memory is saved as well,
so that an interrupted run resumes and ends with the same masks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..data.mask_files import find_masks, mask_for
from ..data.source import FrameSource, open_source
from ..measure.stopwatch import Stopwatch
from ..network import XMem
from ..reference.config import MemoryConfig
from .interrupts import Interrupts
from .labels import scale_of, step_labels, write_labels
from .resume import SavedState, claim, fingerprint_of
from .tracker import Tracker

SAVE_EVERY = 100  # frames between two saved states
SAVE_SECONDS = 30.0  # or so many seconds, whichever comes first


@dataclass
class SegmentJob:
    """One video to segment.

    video: a file, or a folder of images.
    masks: a PNG of labels for frame ``start``; or a folder of PNGs named as frames, of which the
        first one with an object starts the work and later ones introduce objects.
    out: the folder for ``masks/``; for ``job.json``, which records whose masks they are; and, while
        the job runs, for ``resume/``.
    size: the shorter side that the network sees, in pixels; 0 for the video's own.
    autocast: float16 or bfloat16 for the network's convolutions, None for the network's type.
    save_every: frames between two saved states.
    """

    video: Path
    masks: Path
    out: Path
    start: int = 0
    size: int = 480
    config: MemoryConfig = field(default_factory=MemoryConfig)
    autocast: torch.dtype | None = None
    save_every: int = SAVE_EVERY


@dataclass
class SegmentReport:
    """What a run did.

    frames: masks that exist now; ``resumed`` of them are from an earlier run.
    wall: seconds of the loop. seconds, calls: by stage. The stages follow one another, so that
        their sum is ``wall`` less the loop's own time. A thread decodes beside them; the stage
        "waiting for frames" is the time it was waited for. "decoder" includes the aggregation.
    memory: the memory in words.
    """

    frames: int = 0
    resumed: int = 0
    objects: tuple[int, ...] = ()
    wall: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    memory: str = ""

    @property
    def frames_per_second(self) -> float:
        """Of this run alone."""
        return (self.frames - self.resumed) / self.wall if self.wall > 0 else 0.0


# Called after each frame with the frames done, their total if it is known, and the tracker.
Progress = Callable[[int, int | None, Tracker], None]


def segment(
    network: XMem,
    job: SegmentJob,
    progress: Progress = lambda *_: None,
    then: Callable[[Path, int], None] | None = None,
) -> SegmentReport:
    """Writes ``out/masks/<frame>.png``, a palette PNG of labels, for each frame from the mask on.

    An interrupted run of the same job in the same folder is resumed.

    then: called with the folder of masks and the number of the first frame when all masks exist,
        for example to draw them. If it raises, the next run begins with ``then``.

    Raises VideoError, MaskError or ValueError before anything is written, where the input does not
    fit or ``out`` has the job's input or the masks of another job. Raises OSError where a result
    cannot be written. Whatever stops a run, finished masks stay. In the main thread the first
    Ctrl-C waits for the end of a frame, a second one does not.
    """
    source = open_source(job.video)
    expect_out(job, source)
    masks = find_masks(job.masks, source, job.start)
    first = min(masks)
    if network.config.hidden_dim != job.config.hidden_dim:
        job.config = MemoryConfig(**{**asdict(job.config), "hidden_dim": network.config.hidden_dim})
    watch = Stopwatch()
    tracker = Tracker(network, job.config, autocast=job.autocast, stopwatch=watch)
    folder = job.out / "masks"
    fingerprint = fingerprint_of(network, source, masks, (job.size, job.config, job.autocast))
    claim(job.out, fingerprint)
    saved = SavedState(job.out / "resume", fingerprint, job.save_every, SAVE_SECONDS)
    begin, ended = saved.restore(tracker, folder, source, first)
    scale = scale_of(source, job.size)
    report = SegmentReport(frames=begin - first, resumed=begin - first)
    total = None if source.frames is None else source.frames - first
    done = begin  # the number of the next frame
    between_frames = True  # the tracker has seen exactly the frames before ``done``
    stream = source.read(begin)
    started = time.perf_counter()
    try:
        with Interrupts() as interrupts:
            with watch("waiting for frames"):
                frame = None if ended else next(stream, None)
            while frame is not None:
                with watch("waiting for frames"):
                    following = next(stream, None)
                with interrupts.delayed():
                    between_frames = False
                    file = masks.get(frame.number)
                    mask = None if file is None else mask_for(source, file, masks.rule)
                    labels = step_labels(tracker, frame.image, mask, scale=scale, end=following is None, watch=watch)
                    with watch("writing"):
                        write_labels(folder / f"{frame.name}.png", labels)
                    done, ended, between_frames = frame.number + 1, following is None, True
                report.frames = done - first
                progress(report.frames, total, tracker)
                if not ended and saved.due(report.frames):
                    with watch("saving the state"):
                        saved.save(tracker, done)
                frame = following
        report.wall = time.perf_counter() - started
        if then is not None:
            then(folder, first)
    except BaseException:
        # The error that stopped the run is the one to report; failing to save costs some frames of
        # the next run. Within a frame the tracker is ahead of the masks, and the last save stands.
        if between_frames:
            with contextlib.suppress(Exception):
                saved.save(tracker, done, ended)
        raise
    finally:
        stream.close()  # type: ignore[attr-defined]
    saved.remove()
    report.seconds, report.calls = watch.seconds, watch.calls
    report.objects, report.memory = tracker.objects, repr(tracker.memory)
    return report


def expect_out(job: SegmentJob, source: FrameSource) -> None:
    """Raises ValueError where ``out`` is a file, or results would overwrite the job's input."""
    if job.out.exists() and not job.out.is_dir():
        raise ValueError(f"out: wanted a folder for results, got {job.out}, which is a file")
    inputs = {job.video.resolve(), job.masks.resolve(), job.masks.resolve().parent}
    outputs = [job.out / name for name in ("masks", "resume", "overlay.mp4")]
    overwritten = [path for path in outputs if path.resolve() in inputs]
    if overwritten:
        name = overwritten[0].name
        raise ValueError(f"out: wanted a folder for results, got {job.out}, whose {name} is input of the run")
