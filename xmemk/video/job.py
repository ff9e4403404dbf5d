"""A video to segment: what is asked for, and every check that needs no network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..data.backwards import read_backwards
from ..data.label_rules import LabelRule
from ..data.live import StreamSource
from ..data.mask_files import find_masks, mask_for
from ..data.masks import AUTOMATIC
from ..data.source import FrameSource, VideoFrame, open_source
from ..data.whole_files import expect_folder, is_result
from ..reference.config import MemoryConfig
from .frame_results import FrameResults
from .resume import JobRecord, Look, identity

SAVE_EVERY = 100  # frames between two saved states
FOLDERS = ("masks", "soft", "cutouts", "resume")
FILES = ("job.json", "overlay.mp4", "side-by-side.mp4")
Direction = Literal["forward", "backward", "both"]


@dataclass
class SegmentJob:
    """One video to segment.

    video: a file, a folder of images, or a source that is open already, such as a stream.
    masks: a PNG of labels for frame ``start``; or a folder of PNGs named as frames, of which the
        first one with an object starts the work and later ones introduce objects. Backwards it is
        the last one with an object that starts the work, and earlier ones introduce objects.
    out: the folder for ``masks/``; for ``job.json``, which records whose masks they are; and, while
        the job runs, for ``resume/``.
    rule: how values of masks become labels.
    direction: from the first mask to the end, to the beginning, or both, one after the other.
        Backwards, the tracker has a memory of its own. Masks of a folder that come later are for
        the way forward.
    size: the shorter side that the network sees, in pixels; 0 for the video's own.
    autocast: float16 or bfloat16 for the network's convolutions, None for the network's type.
    object_chunk: objects that the network handles at a time, None for all; see :class:`Tracker`.
    soft, cutout: see :class:`FrameResults`.
    save_every: frames between two saved states.
    overwrite: whether results of another job in ``out``, and finished ones of this, are replaced.
    """

    video: Path | FrameSource
    masks: Path
    out: Path
    start: int = 0
    rule: LabelRule = AUTOMATIC
    direction: Direction = "forward"
    size: int = 480
    config: MemoryConfig = field(default_factory=MemoryConfig)
    autocast: torch.dtype | None = None
    object_chunk: int | None = None
    soft: bool = False
    cutout: bool = False
    save_every: int = SAVE_EVERY
    overwrite: bool = False


@dataclass(frozen=True)
class Leg:
    """One way through a video, forwards or backwards, which begins with a mask.

    masks: by frame number. rule: how their values become labels.
    repeats: whether the first frame's results are those of an earlier leg.
    frames: how many it has results of, None where the video does not say.
    """

    source: FrameSource
    start: int
    masks: dict[int, Path]
    rule: LabelRule = AUTOMATIC
    backwards: bool = False
    repeats: bool = False

    @property
    def frames(self) -> int | None:
        if self.backwards:
            return self.start + 1 - self.repeats
        return None if self.source.frames is None else self.source.frames - self.start

    def read(self, number: int) -> Iterator[VideoFrame]:
        """The frames from ``number`` on, in the order of the leg."""
        if not self.backwards:
            return self.source.read(number)
        return read_backwards(self.source, number) if number >= 0 else iter(())

    def after(self, number: int) -> int:
        return number - 1 if self.backwards else number + 1


@dataclass(frozen=True)
class Prepared:
    """A job whose input and folder of results have been checked.

    job: a copy of what was asked for. identity: see :func:`xmemk.video.resume.identity`.
    finished: the first and the last frame, where an earlier run has finished the job.
    """

    job: SegmentJob
    source: FrameSource
    legs: tuple[Leg, ...]
    identity: dict[str, str]
    results: FrameResults
    finished: tuple[int, int] | None


def prepare(job: SegmentJob, weights: Callable[[], str], look: Look = lambda done, total: None) -> Prepared:
    """Checks a job without writing anything.

    weights: gives the digest of the network's parameters, as
        :func:`xmemk.video.resume.weights_digest` does, when all that is quicker has been checked.
    look: called while the video is read for its fingerprint, with the bytes done and the total.

    Raises VideoError, MaskError or ValueError where the input does not fit, or ``out`` has the
    job's input or results of another job; OSError where ``out`` cannot be written to.
    """
    source = open_source(job.video) if isinstance(job.video, Path) else job.video
    live = isinstance(source, StreamSource)
    if live and job.direction != "forward":
        raise ValueError(f"direction: {source.path} comes once and forwards, so it cannot be followed {job.direction}")
    expect_out(job, source)
    legs = _legs(job, source)
    record = JobRecord(job.out)
    results = FrameResults(job.out, soft=job.soft, cutout=job.cutout)
    settings: dict[str, Any] = {
        "size": job.size,
        "direction": job.direction,
        "start": legs[0].start,
        "autocast": job.autocast,
    }
    settings["labels"] = legs[0].rule
    memory = {name: value for name, value in asdict(job.config).items() if name != "hidden_dim"}  # the weights have it
    job_identity = identity(weights(), source, legs[0].masks, settings | memory, look)
    if job.overwrite:
        if record.job is None:
            record.expect(job_identity)  # which refuses masks that are not ours
        return Prepared(job, source, legs, job_identity, results, None)
    if live and record.job is not None and any(results.masks.glob("*.png")):
        raise ValueError(
            f"{job.out}: has results of an earlier run, and a stream cannot be resumed; give another --out, or "
            "--overwrite to replace them"
        )
    record.expect(job_identity)
    finished = _finished(job, record, source, results) if record.job == job_identity else None
    return Prepared(job, source, legs, job_identity, results, finished)


def expect_out(job: SegmentJob, source: FrameSource) -> None:
    """Raises ValueError or OSError where ``out`` cannot be written to, or has the job's input."""
    expect_folder(job.out, (*FOLDERS, *FILES))
    inputs = [job.masks.resolve()]
    if not isinstance(source, StreamSource):
        inputs.append(source.path.resolve())
    for path in inputs:
        if path == job.out.resolve():
            raise ValueError(f"out: wanted a folder for results, got {job.out}, which is input of the run")
        product = next((n for n in (*FOLDERS, *FILES) if {path, *path.parents} & {(job.out / n).resolve()}), None)
        if product is not None:
            raise ValueError(f"out: wanted a folder for results, got {job.out}, whose {product} is input of the run")


def _legs(job: SegmentJob, source: FrameSource) -> tuple[Leg, ...]:
    masks = find_masks(job.masks, source, job.start, job.rule)  # from the first with an object on
    rule = masks.rule
    first = min(masks)
    if job.direction == "backward":
        last = next(n for n in sorted(masks, reverse=True) if bool((mask_for(source, masks[n], rule) > 0).any()))
        legs = [Leg(source, last, {n: file for n, file in masks.items() if n <= last}, rule, backwards=True)]
    else:
        legs = [Leg(source, first, masks, rule)]
        if job.direction == "both" and first > 0:
            legs.append(Leg(source, first, {first: masks[first]}, rule, backwards=True, repeats=True))
    if job.direction == "backward" and legs[0].start == 0:
        raise ValueError(f"direction: nothing comes before frame 0 of {source.path}, with which {job.masks} begins")
    return tuple(legs)


def _finished(job: SegmentJob, record: JobRecord, source: FrameSource, results: FrameResults) -> tuple[int, int] | None:
    """The first and the last frame of a finished job, all of whose results are there."""
    if record.finished is None:
        return None
    first, last = record.finished
    wanted = [name for name, asked in (("soft", job.soft), ("cutouts", job.cutout)) if asked]
    absent = [name for name in wanted if name not in record.products]
    if absent:
        raise ValueError(
            f"{job.out}: was finished without {' and '.join(absent)}; give --overwrite to do it again, or another --out"
        )
    with contextlib.suppress(LookupError):
        if all(is_result(results.masks / f"{source.name_of(n)}.png") for n in range(first, last + 1)):
            return first, last
    return None
