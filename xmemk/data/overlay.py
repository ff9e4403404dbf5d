"""Masks drawn over frames, and videos of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from .masks import STORED, palette, read_mask
from .source import FrameSource, VideoFrame
from .video_writer import VideoWriter, time_base_of
from .whole_files import is_result, whole_file

_LIVE = Fraction(1, 90000)  # seconds, of which any frame rate has a multiple near enough


def overlay(
    image: Tensor, labels: Tensor, opacity: float = 0.45, tints: Mapping[int, tuple[int, int, int]] | None = None
) -> Tensor:
    """The image [H, W, 3] uint8 with labels [H, W] drawn as tints with a white outline.

    tints: a label's red, green and blue, where they are not to be those of :func:`palette`.
    """
    colours = torch.tensor(palette(), dtype=torch.float32)
    colours[1] = torch.tensor([235.0, 64.0, 52.0])  # the first object in a red that stands out from grey fur
    for label, colour in (tints or {}).items():
        colours[label] = torch.tensor(colour, dtype=torch.float32)
    tint = colours[labels.long()]
    inside = (labels > 0).unsqueeze(2)
    mixed = torch.where(inside, (1 - opacity) * image.float() + opacity * tint, image.float())
    return (
        torch.where(_outline(labels).unsqueeze(2), torch.tensor([255.0, 255.0, 255.0]), mixed).round().to(torch.uint8)
    )


def _outline(labels: Tensor) -> Tensor:
    """Object pixels that are next to another label, [H, W] bool."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge & (labels > 0)


class DrawnVideos:
    """A context manager that writes videos of frames with their masks drawn.

    The files appear when the block ends, or not at all. Frames keep their times, the shape of their
    pixels, and the sound of the time they cover.

    paths: the videos by kind, "overlay" or "side-by-side": the frame, and beside it the overlay.
    ends_early: whether frames of the source come after those written.
    """

    def __init__(self, paths: Mapping[str, Path], source: FrameSource, *, ends_early: bool = False) -> None:
        self._paths, self._source, self._ends_early = dict(paths), source, ends_early
        self._begin = Fraction(0)  # of the source's time, which becomes 0
        self._writers: dict[str, VideoWriter] = {}
        self._open = contextlib.ExitStack()

    @property
    def notes(self) -> list[str]:
        """What differs from what was asked for, one sentence each."""
        return [f"{self._paths[kind].name} {note}" for kind, writer in self._writers.items() for note in writer.notes]

    def write(self, frame: VideoFrame, labels: Tensor | None) -> None:
        """Writes one frame with its labels [H, W]; without labels as it is."""
        if not self._writers:
            self._begin_with(frame)
        drawn = frame.image if labels is None else overlay(frame.image, labels)
        for kind, writer in self._writers.items():
            picture = torch.cat([frame.image, drawn], 1) if kind == "side-by-side" else drawn
            writer.write(picture, frame.time - self._begin)

    def _begin_with(self, frame: VideoFrame) -> None:
        source = self._source
        file = source.path if source.names is None and source.path.is_file() else None
        # A file's first frame keeps its time, and stays in step with sound that begins before it.
        self._begin = min(frame.time, Fraction(0)) if file is not None and frame.number == 0 else frame.time
        for kind, path in self._paths.items():
            unfinished = self._open.enter_context(whole_file(path))
            self._writers[kind] = self._open.enter_context(
                VideoWriter(
                    unfinished,
                    source.width * (2 if kind == "side-by-side" else 1),
                    source.height,
                    source.rate,
                    time_base=_LIVE if file is None else time_base_of(file),
                    pixel_aspect=source.pixel_aspect,
                    sound=file,
                    begin=self._begin,
                    ends_early=self._ends_early,
                )
            )

    def __enter__(self) -> DrawnVideos:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.__exit__(kind, error, tb)


def draw_videos(
    paths: Mapping[str, Path],
    source: FrameSource,
    masks: Path,
    first: int = 0,
    last: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Writes :class:`DrawnVideos` of the frames from ``first`` to ``last``, or to the end.

    Each frame has its mask ``masks/<frame>.png`` drawn; one without a mask is written as it is.

    progress: called after each frame with the frames done. Returns the videos' notes.
    """
    frames = source.read(first)
    with contextlib.closing(frames), DrawnVideos(paths, source, ends_early=last is not None) as videos:  # type: ignore[type-var]
        for frame in frames:
            if last is not None and frame.number > last:
                break
            file = masks / f"{frame.name}.png"
            videos.write(frame, read_mask(file, STORED) if is_result(file) else None)
            progress(frame.number - first + 1)
    return videos.notes
