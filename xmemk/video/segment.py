"""Segmenting a whole video from its first mask, with a few frames in memory at any time.

Each mask becomes a file when its frame is done. Every so many frames the memory is saved as well,
so that an interrupted run resumes and ends with the same masks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.live import StreamSource
from ..data.mask_files import mask_for
from ..data.source import VideoFrame
from ..data.whole_files import collect, results_folder
from ..measure.stopwatch import Stopwatch
from ..network import XMem
from .interrupts import Interrupts
from .job import FILES, FOLDERS, Leg, Prepared, SegmentJob, prepare
from .labels import scale_of, step_probability
from .resume import JobRecord, SavedState, weights_digest
from .tracker import Tracker

SAVE_SECONDS = 30.0  # a state is saved after so many seconds if not by the number of frames before


@dataclass
class SegmentReport:
    """What a run did.

    frames: masks that exist now, of the frames from ``first`` to ``last``; ``resumed`` of them are
        from an earlier run.
    wall: seconds of the loop. seconds, calls: by stage. The stages follow one another, so that
        their sum is ``wall`` less the loop's own time. A thread decodes beside them; the stage
        "waiting for frames" is the time it was waited for. "decoder" includes the aggregation.
    memory: the memory in words. unused: masks whose frames the video does not have.
    """

    frames: int = 0
    resumed: int = 0
    first: int = 0
    last: int = 0
    objects: tuple[int, ...] = ()
    wall: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    memory: str = ""
    unused: tuple[str, ...] = ()

    @property
    def frames_per_second(self) -> float:
        """Of this run alone."""
        return (self.frames - self.resumed) / self.wall if self.wall > 0 else 0.0


# Called after each frame with the frames done, their total if it is known, and the tracker.
Progress = Callable[[int, int | None, Tracker], None]
# Called with each frame and its labels [H, W] uint8.
Each = Callable[[VideoFrame, Tensor], None]
# Called when all masks exist, with their folder and the numbers of the first and the last frame.
Then = Callable[[Path, int, int], None]


def segment(
    network: XMem | Callable[[], XMem],
    job: SegmentJob | Prepared,
    progress: Progress = lambda *_: None,
    then: Then | None = None,
    each: Each | None = None,
) -> SegmentReport:
    """Writes ``out/masks/<frame>.png``, a palette PNG of labels, for each frame from the mask on.

    An interrupted run of the same job in the same folder is resumed. A finished one is not done
    again: its report has as many frames resumed as there are.

    network: the network; or, for a job that is prepared, what makes it, called if it is needed.
    then: called when all masks exist, for example to draw them. If it raises, the next run begins
        with ``then``.
    each: not called for frames that an earlier run did.

    Raises what :func:`xmemk.video.job.prepare` raises before anything is written, and OSError where
    a result cannot be written. Whatever stops a run, finished masks stay. In the main thread the
    first Ctrl-C waits for the end of a frame, a second one does not.
    """
    if isinstance(job, SegmentJob):
        if not isinstance(network, XMem):
            raise TypeError("network: wanted an XMem for a job that is not prepared")
        state = network.state_dict()
        job = prepare(job, lambda: weights_digest(state))
    with results_folder(job.job.out, (*FOLDERS, *FILES)):
        if job.finished is None:
            return _Run(network if isinstance(network, XMem) else network(), job, progress, each).all(then)
        first, last = job.finished
        if then is not None:
            then(job.results.masks, first, last)
        return SegmentReport(frames=last - first + 1, resumed=last - first + 1, first=first, last=last)


class _Run:
    """A job under way."""

    def __init__(self, network: XMem, prepared: Prepared, progress: Progress, each: Each | None) -> None:
        job = prepared.job
        self._prepared, self._job, self._network = prepared, job, network
        self._progress, self._each = progress, each
        self._legs, self._results = prepared.legs, prepared.results
        self._config = replace(job.config, hidden_dim=network.config.hidden_dim)
        self._watch = Stopwatch()
        self._scale = scale_of(prepared.source, job.size)
        self._saved = SavedState(job.out / "resume", prepared.identity, job.save_every, SAVE_SECONDS)
        frames = [leg.frames for leg in self._legs]
        self._total = None if None in frames else sum(count or 0 for count in frames)
        # Where the run is. Within a frame the tracker is ahead of the masks.
        self._tracker = self._new_tracker()
        self._leg = 0
        self._next, self._ended = self._legs[0].start, False  # the next frame, and whether there is none
        self._span: tuple[int, int] | None = None  # the first and the last frame with results
        self._objects: tuple[int, ...] = ()
        self._between_frames = True

    def all(self, then: Then | None) -> SegmentReport:
        record = JobRecord(self._job.out)
        products = [name for name, asked in (("soft", self._job.soft), ("cutouts", self._job.cutout)) if asked]
        self._claim(record, products)
        report = SegmentReport(resumed=self._done())
        started = time.perf_counter()
        try:
            with Interrupts() as interrupts:
                self._follow(interrupts)
                while self._leg + 1 < len(self._legs):
                    self._save()
                    self._objects = self._tracker.objects
                    self._leg, self._tracker = self._leg + 1, self._new_tracker()
                    self._next, self._ended = self._legs[self._leg].start, False
                    self._follow(interrupts)
            report.wall = time.perf_counter() - started
            report.frames = self._done()
            report.first, report.last = self._span or (0, 0)
            if then is not None:
                then(self._results.masks, report.first, report.last)
        except BaseException:
            # The error that stopped the run is the one to report; failing to save costs some frames
            # of the next run. Within a frame the last save stands.
            if self._between_frames:
                with contextlib.suppress(Exception):
                    self._save()
            raise
        record.write(self._prepared.identity, products, self._span)
        self._saved.remove()
        report.seconds, report.calls = self._watch.seconds, self._watch.calls
        report.objects = tuple(dict.fromkeys((*self._objects, *self._tracker.objects)))
        report.memory = repr(self._tracker.memory)
        masks = self._legs[0].masks.items()
        report.unused = tuple(str(file) for number, file in masks if number > report.last)
        return report

    def _new_tracker(self) -> Tracker:
        job = self._job
        return Tracker(
            self._network,
            self._config,
            autocast=job.autocast,
            stopwatch=self._watch,
            object_chunk=job.object_chunk,
        )

    def _done(self) -> int:
        return 0 if self._span is None else self._span[1] - self._span[0] + 1

    def _claim(self, record: JobRecord, products: list[str]) -> None:
        """Makes the folder this job's, and goes on where an earlier run of it stopped."""
        out = self._job.out
        for folder in (out, *self._results.folders):
            collect(folder)
        state = None if self._job.overwrite else self._saved.read()
        if state is None or not self._resume(state):
            self._clear(masks=self._job.overwrite or record.job != self._prepared.identity)
        record.write(self._prepared.identity, products)
        self._results.masks.mkdir(exist_ok=True)

    def _resume(self, state: dict[str, Any]) -> bool:
        try:
            leg, done, ended, (first, last) = state["leg"], state["done"], bool(state["ended"]), state["span"]
            names = [self._prepared.source.name_of(number) for number in range(first, last + 1)]
            if leg >= len(self._legs) or not all(self._results.complete(name) for name in names):
                return False
        except (LookupError, TypeError, ValueError):
            return False
        if not self._saved.restore(self._tracker, state):
            return False
        self._leg, self._next, self._ended, self._span = leg, done, ended, (first, last)
        self._objects = tuple(state["objects"])
        return True

    def _clear(self, masks: bool) -> None:
        """Removes what earlier runs left, which this one does not go on with."""
        out = self._job.out
        patterns = ("masks/*.png", "cutouts/*.png", "soft/*/*.png") if masks else ()
        videos = [out / name for name in FILES if name.endswith(".mp4")]
        for file in (*videos, *(file for pattern in patterns for file in out.glob(pattern))):
            file.unlink(missing_ok=True)
        for folder in (*out.glob("soft/*"), out / "soft", out / "cutouts"):
            with contextlib.suppress(OSError):  # there is no folder, or it has other files
                folder.rmdir()
        self._saved.remove()

    def _follow(self, interrupts: Interrupts) -> None:
        """The rest of the leg."""
        if self._ended:
            return
        leg, watch = self._legs[self._leg], self._watch
        stream = leg.read(self._next)
        try:
            with watch("waiting for frames"):
                frame = next(stream, None)
            while frame is not None:
                with watch("waiting for frames"):
                    following = next(stream, None)
                with interrupts.delayed():
                    self._between_frames = False
                    self._step(leg, frame, following is None)
                    self._next, self._ended, self._between_frames = leg.after(frame.number), following is None, True
                    self._progress(self._done(), self._total, self._tracker)
                if not self._ended and self._saved.due(self._done()):
                    with watch("saving the state"):
                        self._save()
                frame = following
            self._ended = True
        finally:
            stream.close()  # type: ignore[attr-defined]

    def _step(self, leg: Leg, frame: VideoFrame, end: bool) -> None:
        file = leg.masks.get(frame.number)
        mask = None if file is None else mask_for(leg.source, file, leg.rule)
        tracker, watch = self._tracker, self._watch
        probability = step_probability(tracker, frame.image, mask, scale=self._scale, end=end, watch=watch)
        if leg.repeats and frame.number == leg.start:
            return
        with watch("writing"):
            labels = self._results.write(frame.name, frame.image, probability, tracker.objects)
        if self._each is not None:
            with watch("drawing"):
                self._each(frame, labels)
        first, last = self._span or (frame.number, frame.number)
        self._span = min(first, frame.number), max(last, frame.number)

    def _save(self) -> None:
        if self._span is not None and not isinstance(self._prepared.source, StreamSource):
            where = {"leg": self._leg, "done": self._next, "ended": self._ended, "span": self._span}
            self._saved.save(self._tracker, where | {"objects": self._objects})
