"""Segmenting a whole video from its first mask: frames in, masks out, a few frames in memory at any time.

What is done is on disk: each mask is a file of its own, and every so many frames the memory is saved beside them, so
that an interrupted run goes on where it was and ends with the same masks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.mask_files import find_masks, mask_for
from ..data.masks import write_mask
from ..data.source import Source, open_source
from ..measure.stopwatch import Stopwatch
from ..memory import Memory
from ..network.network import XMem
from ..reference.config import MemoryConfig
from .tracker import Tracker

SAVE_EVERY = 100  # frames between two states on disk
SAVE_SECONDS = 30.0  # or so many seconds
_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than files may be here",
}


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
    _claim(job.out, fingerprint)
    saved = _Saved(job.out / "resume", fingerprint)
    begin, ended = saved.restore(tracker, folder, source, first)
    scale = scale_of(source, job.size)
    report = Report(frames=begin - first, resumed=begin - first)
    total = None if source.frames is None else source.frames - first
    started = saved_at = time.perf_counter()
    done, whole = begin, True  # whole: the tracker has seen all of the frames before ``done`` and nothing else
    stream = source.read(begin)
    try:
        with _Interrupts() as interrupts:
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


class _Interrupts:
    """Entered in the main thread, it keeps the first Ctrl-C within ``held`` until that ends; a second comes at once."""

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._holding = self._waiting = False

    def __enter__(self) -> _Interrupts:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._holding, self._waiting = True, False
        try:
            yield
        finally:
            self._holding = False
        if self._waiting and self._handler is not None:
            self._handler(signal.SIGINT, None)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._holding and not self._waiting:
            self._waiting = True
        elif self._handler is not None:
            self._handler(number, frame)


def expect_out(job: Job, source: Source) -> None:
    """ValueError where results would be written over the input of a job, or ``out`` is no folder."""
    if job.out.exists() and not job.out.is_dir():
        raise ValueError(f"out: wanted a folder for results, got {job.out}, which is a file")
    given = {job.video.resolve(), job.masks.resolve(), job.masks.resolve().parent}
    written = [job.out / name for name in ("masks", "resume", "overlay.mp4")]
    lost = [path for path in written if path.resolve() in given]
    if lost:
        raise ValueError(f"out: wanted a folder for results, got {job.out}, whose {lost[0].name} is input of the run")


def _claim(out: Path, fingerprint: str) -> None:
    """Makes the folder of masks, and notes whose they are. ValueError where there are masks of another job."""
    note = out / "job.json"
    try:
        whose = json.loads(note.read_text())["of"]
    except (OSError, ValueError, LookupError, TypeError):
        whose = None
    if whose != fingerprint and any((out / "masks").glob("*.png")):
        raise ValueError(
            f"{out / 'masks'}: has masks of another video, first mask, weights or settings; give another --out, or "
            "remove them"
        )
    (out / "masks").mkdir(parents=True, exist_ok=True)
    temporary = out / "job.part"
    temporary.write_text(json.dumps({"of": fingerprint}))
    os.replace(temporary, note)


def scale_of(source: Source, size: int) -> tuple[int, int] | None:
    """(H, W) with the shorter side of that size; None for the video's own."""
    shorter = min(source.height, source.width)
    if size <= 0 or shorter == size:
        return None
    return int(source.height / shorter * size), int(source.width / shorter * size)


def step_labels(
    tracker: Tracker,
    image: Tensor,
    mask: Tensor | None = None,
    objects: Sequence[int] | None = None,
    *,
    scale: tuple[int, int] | None,
    end: bool,
    watch: Stopwatch,
) -> Tensor:
    """The labels [H, W] uint8 of one frame [H, W, 3] uint8, at its own size.

    mask, objects, end: as for :meth:`Tracker.step`, the mask labels at the frame's size. scale: what the network sees.
    """
    size = image.shape[:2]
    with watch("resizing"):
        image = image.permute(2, 0, 1).to(tracker.device).contiguous()
        if scale is not None:
            image = F.interpolate(image[None] / 255, scale, mode="bilinear", antialias=True)[0].clamp(0, 1)
            if mask is not None:
                mask = F.interpolate(mask[None, None], scale, mode="nearest")[0, 0]
    probability = tracker.step(image, mask, objects, end=end)
    with watch("resizing"):
        if scale is not None:
            probability = F.interpolate(probability[None], size, mode="bilinear")[0]
        return labels_of(probability, (0, *tracker.objects)).cpu()


def labels_of(probability: Tensor, names: Sequence[int]) -> Tensor:
    """Of [R, H, W] the most probable row's name, [H, W] uint8; of equal rows the first, as argmax has it.

    Row by row: argmax over the first dimension takes the CPU twenty times as long.
    """
    best = probability[0].clone()
    labels = torch.full(best.shape, names[0], dtype=torch.uint8, device=best.device)
    for name, row in zip(names[1:], probability[1:]):
        labels.masked_fill_(row > best, name)
        best = torch.maximum(best, row)
    return labels


def write_labels(path: Path, labels: Tensor, colours: Sequence[int] | None = None) -> None:
    """All of a mask or nothing: a run that is killed while writing leaves no half of one.

    colours: as for :func:`xmemk.data.masks.write_mask`.
    """
    temporary = path.with_suffix(".part")
    try:
        write_mask(temporary, labels, *([] if colours is None else [colours]))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _NO_SPACE:
            what = f"{_NO_SPACE[error.errno]}; masks written so far are kept"
            raise OSError(error.errno, what, str(path)) from error
        raise


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


def weights_digest(network: XMem) -> str:
    """Equal for networks of the same names, shapes and sums of weights."""
    digest = hashlib.sha256()
    for name, x in network.state_dict().items():
        digest.update(f"{name} {tuple(x.shape)} {float(x.double().sum())!r}".encode())
    return digest.hexdigest()


class _Saved:
    """The state on disk: a memory, and a small file that names it, replaced last."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def save(self, tracker: Tracker, done: int, ended: bool = False) -> None:
        """``done``: the number of the frame to go on with; ``ended``: there is none of that number."""
        if not isinstance(tracker.memory, Memory) or not tracker.objects:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"memory-{done}.safetensors"
        tracker.memory.save(file)
        state: dict[str, Any] = {"of": self._fingerprint, "done": done, "ended": ended, "memory": file.name}
        state["tracker"] = tracker.state()
        temporary = self._folder / "state.part"
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._folder / "state.json")
        for old in self._folder.glob("memory-*.safetensors"):
            if old != file:
                old.unlink()

    def restore(self, tracker: Tracker, masks: Path, source: Source, first: int) -> tuple[int, bool]:
        """The number of the frame to begin with, and whether the video ends before it: the first, unless there is a
        state of this very job that all masks before it belong to.
        """
        try:
            state = json.loads((self._folder / "state.json").read_text())
            done = int(state["done"])
            if state["of"] != self._fingerprint:
                return first, False
            if not all((masks / f"{source.name_of(n)}.png").is_file() for n in range(first, done)):
                return first, False
            tracker.restore(Memory.load(self._folder / state["memory"], tracker.device), state["tracker"])
        except (OSError, ValueError, LookupError, TypeError):
            return first, False  # a state that cannot be used is one that is not there
        return done, bool(state.get("ended", False))

    def remove(self) -> None:
        for file in (*self._folder.glob("memory-*"), *self._folder.glob("state.*")):
            file.unlink()
        with contextlib.suppress(OSError):  # there is none, or something of someone else's in it
            self._folder.rmdir()
