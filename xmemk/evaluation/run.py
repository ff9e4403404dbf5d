"""The tracker on a dataset: masks in ``out/<video>/<frame>.png``, and the cost of each video."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import read_image
from ..data.masks import MaskError, read_colours, read_mask
from ..data.read_ahead import AHEAD, ahead
from ..data.source import FrameSource, Missing, open_source
from ..data.video import VideoError
from ..data.whole_files import collect, expect_folder, write_text
from ..measure.peak import Peak, resident_bytes
from ..measure.stopwatch import Stopwatch
from ..network import XMem
from ..reference.config import MemoryConfig
from ..video.labels import scale_of, step_labels, write_labels
from ..video.resume import weights_digest
from ..video.tracker import Tracker
from .layouts import Dataset, DatasetError, Shot, Video
from .metrics import rule_of
from .policies import make_memory

GROWTH = (100, 200)  # memory growth is measured between these frames (Sec. 3.1)
NOTES = ".xmemk"  # the folder in ``out`` for files that are not results


@dataclass(frozen=True)
class Settings:
    """The settings of a run, on which its results depend.

    policy: a name in :data:`xmemk.evaluation.policies.POLICIES`. size: the shorter side that the
    network sees, 0 for the video's own. autocast: float16 or bfloat16 for the network, or None.
    missing: of a video with a gap among its images, see :func:`xmemk.data.source.open_source`.
    """

    config: MemoryConfig = field(default_factory=MemoryConfig)
    policy: str = "xmem"
    size: int = 480
    autocast: torch.dtype | None = None
    missing: Missing = "error"


@dataclass(frozen=True)
class Cost:
    """The cost of one video.

    frames: those with an object; only they are timed. seconds: see :func:`run`.
    growth: bytes a frame between frames 100 and 200, None for a shorter video. peak: bytes.
    resumed: whether an earlier run did the video.
    """

    video: str
    frames: int
    seconds: float
    objects: int
    width: int
    height: int
    growth: float | None
    peak: int | None
    resumed: bool = False

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0


# Called after each frame: the video, its frames done, and the tracker.
Progress = Callable[[Video, int, Tracker], None]


def check(dataset: Dataset, out: Path, settings: Settings, weights: str, device: str) -> None:
    """Every check of :func:`run` that needs no network.

    weights: the digest of the network's parameters, :func:`xmemk.video.resume.weights_digest`.
    device: the type of the network's device.

    Raises ValueError where ``out`` has results of other settings or is part of the dataset.
    """
    make_memory(settings.policy, settings.config)
    _expect_no_input(dataset, out)
    _expect_settings(out / NOTES, _described(dataset, settings, weights, device))


def run(
    network: XMem,
    dataset: Dataset,
    out: Path,
    settings: Settings,
    progress: Progress = lambda *_: None,
    weights: str | None = None,
) -> list[Cost]:
    """Follows the objects of every video and writes the results that the dataset needs.

    A video that an earlier run of the same settings finished is not run again. As in the released
    evaluation, usage is counted in videos that are long enough to fill long-term memory.

    weights: see :func:`check`; None for the digest of ``network``.

    The seconds of a frame include resizing it for the network, the tracker's step, resizing the
    result and taking labels; they exclude decoding and writing. They are measured between events of
    the GPU, or by the clock on a CPU. Memory is what PyTorch has allocated on the GPU, or the
    resident memory of the process, which includes freed memory that the allocator keeps.

    Raises ValueError where ``out`` has results of other settings or is part of the dataset;
    DatasetError, MaskError or VideoError for input that does not fit; OSError where a result cannot
    be written. The results of finished videos stay.
    """
    weights = weights or weights_digest(network.state_dict())
    device = next(network.parameters()).device.type
    check(dataset, out, settings, weights, device)
    _write_json(out / NOTES / "settings.json", _described(dataset, settings, weights, device))
    settings = replace(settings, config=replace(settings.config, hidden_dim=network.config.hidden_dim))
    costs = []
    for video in dataset.videos:
        cost = _finished(out, video)
        if cost is None:
            cost = _follow(network, video, out / video.name, settings, progress)
            _write_json(_note(out, video), {**asdict(cost), "shots": len(video.shots)})
        costs.append(cost)
    return costs


def counting_usage(config: MemoryConfig, frames: int) -> MemoryConfig:
    """The configuration for a video of so many frames.

    It counts usage in long-term memory if long-term memory can overflow.
    """
    candidates = config.max_mid_term_frames - config.min_mid_term_frames
    overflows = frames / candidates * config.num_prototypes >= config.max_long_term_elements
    return replace(config, enable_long_term_count_usage=config.enable_long_term and overflows)


def _follow(network: XMem, video: Video, folder: Path, settings: Settings, progress: Progress) -> Cost:
    source = open_source(video.folder, missing=settings.missing)  # raises VideoError where frames are missing
    config = counting_usage(settings.config, len(video.shots))
    tracker = Tracker(network, memory=make_memory(settings.policy, config), autocast=settings.autocast)
    scale, annotations, idle = scale_of(source, settings.size), _Annotations(video), Stopwatch(enabled=False)
    _own_folder(folder)
    clock, memory_at, frames = _DeviceClock(tracker.device), {}, 0
    last = len(video.shots) - 1
    peak = Peak(tracker.device)
    with peak:
        for number, (shot, image) in enumerate(ahead(_images(video, source), AHEAD)):
            mask, objects = annotations.new(shot, tracker.objects, image.shape[:2])
            if tracker.objects or objects:
                with clock:
                    labels = step_labels(tracker, image, mask, objects, scale=scale, end=number == last, watch=idle)
                frames += 1
            else:
                labels = torch.zeros(image.shape[:2], dtype=torch.uint8)
            if shot.has_result:
                write_labels(folder / f"{shot.name}.png", labels, annotations.colours)
            if frames in GROWTH and frames not in memory_at:
                memory_at[frames] = resident_bytes(tracker.device)
            progress(video, number + 1, tracker)
    if not frames:
        raise DatasetError(f"{video.folder}: no mask of video {video.name} has an object, every pixel is background")
    start, stop = (memory_at.get(frame) for frame in GROWTH)
    growth = None if start is None or stop is None else (stop - start) / (GROWTH[1] - GROWTH[0])
    return Cost(
        video.name, frames, clock.seconds, len(tracker.objects), source.width, source.height, growth, peak.highest
    )


def _images(video: Video, source: FrameSource) -> Iterator[tuple[Shot, Tensor]]:
    for shot in video.shots:
        image = read_image(shot.image)
        height, width = image.shape[:2]
        if (width, height) != (source.width, source.height):
            raise VideoError(f"{shot.image}: is {width}x{height}, wanted {source.width}x{source.height} as the first")
        yield shot, image


class _Annotations:
    """The annotations that the tracker gets: the first one, or the first of each object."""

    def __init__(self, video: Video) -> None:
        self.colours: list[int] | None = None  # of the first annotation
        self._video = video
        self._rule = rule_of(video)
        self._merged = 0  # the label of all objects as one

    def new(self, shot: Shot, known: tuple[int, ...], size: torch.Size) -> tuple[Tensor | None, tuple[int, ...] | None]:
        """The mask [H, W] uint8 of the frame's new objects, and their labels; None without any."""
        if shot.annotation is None or (known and not self._video.joins):
            return None, None
        mask = self._read(shot.annotation, size)
        new = [label for label in mask.unique().tolist() if label and label not in known]
        if not new:
            return None, None
        return torch.where(torch.isin(mask, torch.tensor(new, dtype=mask.dtype)), mask, 0), tuple(new)

    def _read(self, path: Path, size: torch.Size) -> Tensor:
        mask = read_mask(path, self._rule)
        if mask.shape != size:
            raise MaskError(f"{path}: is {mask.shape[1]}x{mask.shape[0]}, the video {size[1]}x{size[0]}")
        if self.colours is None:
            self.colours = read_colours(path)
        if self._video.labels is not None:
            unknown = sorted(set(mask.unique().tolist()) - self._video.labels - {0})
            if unknown:
                raise MaskError(f"{path}: has labels {unknown}, the dataset says {sorted(self._video.labels)}")
        if self._video.merged:
            labels = [label for label in mask.unique().tolist() if label]
            self._merged = self._merged or (labels[0] if len(labels) == 1 else 1)
            mask = (mask > 0).to(torch.uint8) * self._merged
        return mask


class _DeviceClock:
    """``with clock: ...`` adds to ``seconds``: time between events of the GPU, or wall time."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._start = 0.0

    def __enter__(self) -> None:
        if self._events:
            self._events[0].record(torch.cuda.current_stream(self._device))
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if not self._events:
            self.seconds += time.perf_counter() - self._start
            return
        self._events[1].record(torch.cuda.current_stream(self._device))
        self._events[1].synchronize()
        self.seconds += self._events[0].elapsed_time(self._events[1]) / 1000


def _note(out: Path, video: Video) -> Path:
    return out / NOTES / "videos" / f"{video.name}.json"


def _finished(out: Path, video: Video) -> Cost | None:
    """The cost of a video in an earlier run, if all its results exist."""
    try:
        note = json.loads(_note(out, video).read_text())
        cost = Cost(**{f.name: note[f.name] for f in fields(Cost)})
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if note.get("shots") != len(video.shots):
        return None
    if not all((out / video.name / f"{shot.name}.png").is_file() for shot in video.shots if shot.has_result):
        return None
    return replace(cost, resumed=True)


def _described(dataset: Dataset, settings: Settings, weights: str, device: str) -> dict[str, Any]:
    """All that results depend on, as JSON values."""
    memory = {name: value for name, value in asdict(settings.config).items() if name != "hidden_dim"}  # weights say
    return {
        "dataset": str(dataset.root.resolve()),
        "layout": dataset.layout,
        "split": dataset.split,
        "repeat": dataset.repeat,
        "weights": weights,
        "device": device,
        "policy": settings.policy,
        "size": settings.size,
        "autocast": None if settings.autocast is None else str(settings.autocast),
        "memory": memory,
    }


def _expect_no_input(dataset: Dataset, out: Path) -> None:
    """Raises ValueError where results would overwrite images or annotations of the dataset."""
    for video in dataset.videos:
        folder = (out / video.name).resolve()
        inputs = {video.folder.resolve(), *(s.annotation.parent.resolve() for s in video.shots if s.annotation)}
        if folder in inputs:
            raise ValueError(f"out: wanted a folder for results, got {out}, which has the dataset's own {video.name}")


def _expect_settings(notes: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where the folder has results of other settings.

    Which videos are run may differ from run to run.
    """
    file = notes / "settings.json"
    try:
        recorded = json.loads(file.read_text())
        different = [name for name, value in settings.items() if recorded[name] != value]
    except FileNotFoundError:
        return
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file}: damaged; remove it, and the results that are not of this run") from error
    if different:
        names = ", ".join(different)
        raise ValueError(f"{notes.parent}: has results of another run ({names} differ); give another --out")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _own_folder(path.parent)
    write_text(path, json.dumps(content, indent=1))


def _own_folder(path: Path) -> None:
    """Makes a folder for results, and removes what a killed run left in it."""
    expect_folder(path.parent, (path.name,))
    path.mkdir(parents=True, exist_ok=True)
    collect(path)
