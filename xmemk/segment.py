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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.masks import MaskError, read_mask, write_mask
from .data.source import IMAGES, Source, open_source
from .inference import Tracker
from .memory import Memory
from .reference.config import MemoryConfig
from .reference.network import XMem
from .stopwatch import Stopwatch

SAVE_EVERY = 100  # frames between two states on disk


@dataclass
class Job:
    """video: a file or a folder of images. masks: a PNG of labels for frame ``start``, or a folder of PNGs named as
    frames, of which the first starts the work and later ones bring in objects. size: the shorter side that the
    network sees, 0 for the video's own. out: the folder for ``masks/`` and, while it runs, ``resume/``.
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


def segment(network: XMem, job: Job, progress: Progress = lambda *_: None) -> Report:
    """Writes ``out/masks/<frame>.png`` for every frame from the first mask on, as palette PNGs of the masks' labels.

    Goes on with an interrupted run of the same job in the same folder. Raises VideoError, MaskError or ValueError
    before anything is written where the input does not fit; OSError where a result cannot be written. Whatever
    stops it, masks that are finished stay.
    """
    source = open_source(job.video)
    masks = find_masks(job.masks, source, job.start)
    first = min(masks)
    if network.config.hidden_dim != job.config.hidden_dim:
        job.config = MemoryConfig(**{**asdict(job.config), "hidden_dim": network.config.hidden_dim})
    watch = Stopwatch()
    tracker = Tracker(network, job.config, autocast=job.autocast, stopwatch=watch)
    folder = job.out / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    saved = _Saved(job.out / "resume", _fingerprint(network, job, source, masks))
    begin = saved.restore(tracker, folder, source, first)
    scale = scale_of(source, job.size)
    report = Report(frames=begin - first, resumed=begin - first)
    total = None if source.frames is None else source.frames - first
    started = time.perf_counter()
    done = begin
    stream = source.read(begin)
    try:
        with watch("waiting for frames"):
            frame = next(stream, None)
        while frame is not None:
            with watch("waiting for frames"):
                following = next(stream, None)
            labels = step_labels(
                tracker, frame.image, masks.get(frame.number), scale=scale, end=following is None, watch=watch
            )
            with watch("writing"):
                write_labels(folder / f"{frame.name}.png", labels)
            done = frame.number + 1
            report.frames = done - first
            progress(report.frames, total, tracker)
            if following is not None and (done - first) % job.save_every == 0:
                with watch("saving the state"):
                    saved.save(tracker, done)
            frame = following
    except BaseException:
        # What stopped the run is what is told; a state that cannot be saved costs some frames of the next run.
        with contextlib.suppress(Exception):
            saved.save(tracker, done)
        raise
    finally:
        stream.close()  # type: ignore[attr-defined]
    saved.remove()
    report.wall = time.perf_counter() - started
    report.seconds, report.calls = watch.seconds, watch.calls
    report.objects, report.memory = tracker.objects, repr(tracker.memory)
    return report


def find_masks(path: Path, source: Source, start: int = 0) -> dict[int, Tensor]:
    """Labels [H, W] uint8 by frame number, at the video's size; MaskError where they do not fit.

    A mask of another size but the video's shape, to within a pixel of rounding, is scaled: nearest, no label is mixed.
    """
    if not path.is_dir():
        if source.frames is not None and start >= source.frames:
            raise MaskError(f"{path}: the video has {source.frames} frames, so there is no frame {start} to start with")
        found = {start: path}
    else:
        files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGES}
        if not files:
            raise MaskError(f"{path}: a folder without masks")
        found = {_number(stem, source, file): file for stem, file in files.items()}
    masks = {number: read_mask(file) for number, file in sorted(found.items())}
    masks = {number: _at_size_of(source, mask, found[number]) for number, mask in masks.items()}
    with_objects = [number for number, mask in masks.items() if bool((mask > 0).any())]
    if not with_objects:
        raise MaskError(f"{path}: has no object, every pixel is background (label 0)")
    return {number: mask for number, mask in masks.items() if number >= with_objects[0]}


def _at_size_of(source: Source, mask: Tensor, file: Path) -> Tensor:
    height, width = mask.shape
    if (width, height) == (source.width, source.height):
        return mask
    aspect = source.width / source.height
    if min(abs(width - height * aspect), abs(height - width / aspect)) >= 1:
        video = f"{source.width}x{source.height}"
        raise MaskError(f"{file}: is {width}x{height}, which is not the shape of the video, {video}")
    return F.interpolate(mask[None, None], (source.height, source.width), mode="nearest-exact")[0, 0]


def _number(stem: str, source: Source, file: Path) -> int:
    if source.names is not None:
        stems = [Path(name).stem for name in source.names]
        if stem not in stems:
            raise MaskError(f"{file}: the video has no frame of that name ({stems[0]} to {stems[-1]})")
        return stems.index(stem)
    if not stem.isdigit() or (source.frames is not None and int(stem) >= source.frames):
        last = "" if source.frames is None else f" to {source.frames - 1:05d}"
        raise MaskError(f"{file}: wanted the number of a frame as its name, 00000{last}")
    return int(stem)


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
        if error.errno == errno.ENOSPC:
            raise OSError(error.errno, "the disk is full; masks written so far are kept", str(path)) from error
        raise


def _fingerprint(network: XMem, job: Job, source: Source, masks: Mapping[int, Tensor]) -> str:
    """Equal for runs whose results are equal: the input, the settings and the weights."""
    digest = hashlib.sha256()
    parts = [source.path.resolve(), source.width, source.height, source.frames, job.size, job.config, job.autocast]
    digest.update(repr(parts).encode())
    if source.names is None:
        digest.update(str(source.path.stat().st_size).encode())
    for number, mask in masks.items():
        digest.update(number.to_bytes(8, "little") + mask.numpy().tobytes())
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

    def save(self, tracker: Tracker, done: int) -> None:
        """``done``: the number of the frame to go on with."""
        if not isinstance(tracker.memory, Memory) or not tracker.objects:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"memory-{done}.safetensors"
        tracker.memory.save(file)
        state: dict[str, Any] = {"of": self._fingerprint, "done": done, "memory": file.name, "tracker": tracker.state()}
        temporary = self._folder / "state.part"
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self._folder / "state.json")
        for old in self._folder.glob("memory-*.safetensors"):
            if old != file:
                old.unlink()

    def restore(self, tracker: Tracker, masks: Path, source: Source, first: int) -> int:
        """The number of the frame to begin with: the first, unless there is a state of this very job that all masks
        before it belong to.
        """
        try:
            state = json.loads((self._folder / "state.json").read_text())
            done = int(state["done"])
            if state["of"] != self._fingerprint:
                return first
            if not all((masks / f"{source.name_of(n)}.png").is_file() for n in range(first, done)):
                return first
            tracker.restore(Memory.load(self._folder / state["memory"], tracker.device), state["tracker"])
        except (OSError, ValueError, LookupError, TypeError):
            return first  # a state that cannot be used is one that is not there
        return done

    def remove(self) -> None:
        for file in self._folder.glob("*"):
            file.unlink()
        if self._folder.exists():
            self._folder.rmdir()
