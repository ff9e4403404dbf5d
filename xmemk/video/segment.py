"""Segmenting a whole video from its first mask: frames in, masks out, a few frames in memory at any time.

What is done is on disk: each mask is a file of its own, and every so many frames the memory is saved beside them, so
that an interrupted run goes on where it was and ends with the same masks.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..data.mask_files import find_masks, mask_for
from ..data.source import Source, open_source
from ..measure.stopwatch import Stopwatch
from ..network import XMem
from ..reference.config import MemoryConfig
from .interrupts import Interrupts
from .labels import scale_of, step_labels, write_labels
from .resume import SavedState, claim, weights_digest
from .tracker import Tracker

SAVE_EVERY = 100  # frames between two states on disk
SAVE_SECONDS = 30.0  # or so many seconds


@dataclass
class Job:
    """video: a file or a folder of images. masks: a PNG of labels for frame ``start``, or a folder of PNGs named as
    frames, of which the first starts the work and later ones bring in objects. size: the shorter side that the
    network sees, 0 for the video's own. out: the folder for ``masks/``, ``job.json``, which says whose masks they are,
    and, while it runs, ``resume/``.
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
class Report:
    """What a run did: ``seconds`` and ``calls`` by stage, ``frames`` of which ``resumed`` were there from an earlier
    run.

    The stages follow one another, so that they add up to ``wall`` but for the loop around them. Decoding runs beside
    them, in a thread, and shows as far as it is waited for; aggregation is part of the decoder.
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
        done = self.frames - self.resumed
        return done / self.wall if self.wall > 0 else 0.0


# Called after each frame with the frames done, all of them if known, and the tracker.
Progress = Callable[[int, int | None, Tracker], None]


def segment(
    network: XMem, job: Job, progress: Progress = lambda *_: None, then: Callable[[Path, int], None] | None = None
) -> Report:
    """Writes ``out/masks/<frame>.png`` for every frame from the first mask on, as palette PNGs of the masks' labels.

    then: called with the folder of masks and the first frame when all masks are there, to make something of them; what
    it raises leaves the finished work, so that the next run begins with it.

    Goes on with an interrupted run of the same job in the same folder. Raises VideoError, MaskError or ValueError
    before anything is written where the input does not fit, or where ``out`` has input or masks of another job;
    OSError where a result cannot be written. Whatever stops it, masks that are finished stay. In the main thread
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
    fingerprint = _fingerprint(network, job, source, masks)
    claim(job.out, fingerprint)
    saved = SavedState(job.out / "resume", fingerprint)
    begin, ended = saved.restore(tracker, folder, source, first)
    scale = scale_of(source, job.size)
    report = Report(frames=begin - first, resumed=begin - first)
    total = None if source.frames is None else source.frames - first
    started = saved_at = time.perf_counter()
    done, whole = begin, True  # whole: the tracker has seen all of the frames before ``done`` and nothing else
    stream = source.read(begin)
    try:
        with Interrupts() as interrupts:
            with watch("waiting for frames"):
                frame = None if ended else next(stream, None)
            while frame is not None:
                with watch("waiting for frames"):
                    following = next(stream, None)
                with interrupts.held():
                    whole = False
                    mask = masks.get(frame.number)
                    labels = step_labels(
                        tracker,
                        frame.image,
                        None if mask is None else mask_for(source, mask),
                        scale=scale,
                        end=following is None,
                        watch=watch,
                    )
                    with watch("writing"):
                        write_labels(folder / f"{frame.name}.png", labels)
                    done, ended, whole = frame.number + 1, following is None, True
                report.frames = done - first
                progress(report.frames, total, tracker)
                due = (done - first) % job.save_every == 0 or time.perf_counter() - saved_at >= SAVE_SECONDS
                if not ended and due:
                    with watch("saving the state"):
                        saved.save(tracker, done)
                    saved_at = time.perf_counter()
                frame = following
        report.wall = time.perf_counter() - started
        if then is not None:
            then(folder, first)
    except BaseException:
        # What stopped the run is what is told; a state that cannot be saved costs some frames of the next run. Within
        # a frame the tracker is ahead of the masks: the state on disk from before is the one to go on with.
        if whole:
            with contextlib.suppress(Exception):
                saved.save(tracker, done, ended)
        raise
    finally:
        stream.close()  # type: ignore[attr-defined]
    saved.remove()
    report.seconds, report.calls = watch.seconds, watch.calls
    report.objects, report.memory = tracker.objects, repr(tracker.memory)
    return report


def expect_out(job: Job, source: Source) -> None:
    """ValueError where results would be written over the input of a job, or ``out`` is no folder."""
    if job.out.exists() and not job.out.is_dir():
        raise ValueError(f"out: wanted a folder for results, got {job.out}, which is a file")
    given = {job.video.resolve(), job.masks.resolve(), job.masks.resolve().parent}
    written = [job.out / name for name in ("masks", "resume", "overlay.mp4")]
    lost = [path for path in written if path.resolve() in given]
    if lost:
        raise ValueError(f"out: wanted a folder for results, got {job.out}, whose {lost[0].name} is input of the run")


def _fingerprint(network: XMem, job: Job, source: Source, masks: Mapping[int, Path]) -> str:
    """Equal for runs whose results are equal: the input, the settings and the weights."""
    digest = hashlib.sha256()
    parts = [source.path.resolve(), source.width, source.height, source.frames, job.size, job.config, job.autocast]
    digest.update(repr(parts).encode())
    if source.names is None:
        digest.update(str(source.path.stat().st_size).encode())
    for number, file in masks.items():
        digest.update(number.to_bytes(8, "little") + hashlib.sha256(file.read_bytes()).digest())
    digest.update(weights_digest(network).encode())
    return digest.hexdigest()
