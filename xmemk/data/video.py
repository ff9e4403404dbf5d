"""Reading video through PyAV, with one frame in memory at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import torch
from av.sidedata.sidedata import Type as SideDataType
from torch import Tensor

from .orientation import AS_STORED, Orientation, from_matrix

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideData
    from av.video.stream import VideoStream


# What PyAV raises for damaged files; its own errors are not always a kind of OSError.
_UNREADABLE = (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError)


class VideoError(ValueError):
    """A video that is missing or unreadable; the message is one sentence that names the file."""


@dataclass(frozen=True)
class VideoInfo:
    """What the file says about its video, as a player shows it.

    frames: their number, None where the file does not say. rate: frames per second, on average.
    orientation: how stored frames are turned to be shown; width and height are those shown.
    pixel_aspect: width by height of a pixel. Frames keep their stored pixels, so a player shows
    them ``width * pixel_aspect`` wide.
    """

    width: int
    height: int
    frames: int | None
    rate: Fraction
    orientation: Orientation = AS_STORED
    pixel_aspect: Fraction = Fraction(1)


def open_video(path: str | Path) -> av.container.InputContainer:
    """The opened file, for a ``with`` statement. Raises VideoError."""
    if not Path(path).is_file():
        raise VideoError(f"{path}: no such video file")
    try:
        container = av.open(str(path))
    except _UNREADABLE as error:
        raise VideoError(f"{path}: not a video that can be read ({reason(error)})") from error
    try:
        video_stream(path, container)
    except VideoError:
        container.close()
        raise
    return container


def video_stream(path: str | Path, container: av.container.InputContainer) -> VideoStream:
    """The first video stream that is no cover picture. Raises VideoError where there is none."""
    covers = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & covers), None)
    if stream is None:
        raise VideoError(f"{path}: has no video stream")
    if stream.codec_context is None:
        raise VideoError(f"{path}: not a video that can be read (its codec is unknown)")
    return stream


def probe(path: str | Path) -> VideoInfo:
    """The size, length, rate and orientation of a video, from its header and its first frame.

    Raises VideoError, also for a video without a frame.
    """
    with open_video(path) as container:
        stream = video_stream(path, container)
        if not stream.width or not stream.height:
            raise VideoError(f"{path}: not a video that can be read (it says nothing of its size)")
        frame = next(decoded(path, container), None)
        if frame is None:
            raise VideoError(f"{path}: a video without frames")
        return info_of(path, stream, frame)


def info_of(path: str | Path, stream: VideoStream, first: av.VideoFrame) -> VideoInfo:
    """The size, length, rate and orientation of a video stream whose first frame is decoded."""
    orientation = _orientation(path, first)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    width, height = orientation.size(first.width, first.height)
    pixel_aspect = 1 / aspect if orientation.transposed else aspect
    return VideoInfo(width, height, stream.frames or None, _rate(stream), orientation, pixel_aspect)


def read_frames(path: str | Path, size: tuple[int, int] | None = None, start: int = 0) -> Iterator[Tensor]:
    """The frames of :func:`read_timed_frames` without their times."""
    return (image for _, image in read_timed_frames(path, size, start))


def read_timed_frames(
    path: str | Path, size: tuple[int, int] | None = None, start: int = 0
) -> Iterator[tuple[Fraction, Tensor]]:
    """The frames from number ``start`` (0-based) on: their time, and RGB uint8 [H, W, 3] as shown.

    Time is in seconds on the file's clock, which audio shares and which need not begin at 0.
    size: (width, height) to resize to by area averaging; None for the video's own.

    Raises VideoError where the file is damaged, which may be in the middle, or has no frame
    ``start``.
    """
    count = 0
    with open_video(path) as container:
        for time, frame in timed(decoded(path, container), _rate(video_stream(path, container))):
            count += 1
            if count > start:
                yield time, shown(path, frame, size)
    if count <= start:
        raise VideoError(f"{path}: has {count} frames, so there is no frame {start}")


def timed(frames: Iterable[av.VideoFrame], rate: Fraction) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """Stored frames with their times in seconds.

    A frame that has none comes 1 / ``rate`` after the last.
    """
    time = None
    for frame in frames:
        if frame.pts is not None and frame.time_base is not None:
            time = frame.pts * frame.time_base
        else:
            time = Fraction(0) if time is None else time + 1 / rate
        yield time, frame


def shown(path: str | Path, frame: av.VideoFrame, size: tuple[int, int] | None = None) -> Tensor:
    """A stored frame as a player shows it, RGB uint8 [H, W, 3], resized by area averaging.

    Raises VideoError for transparent pixels, whose colour depends on what is behind them.
    """
    orientation = _orientation(path, frame)
    width, height = orientation.size(*size) if size else (None, None)
    try:
        if any(part.is_alpha for part in frame.format.components):
            alpha = frame.reformat(format="rgba").to_ndarray()[:, :, 3]
            if alpha.min() < 255:
                raise VideoError(f"{path}: has transparent pixels; save it on a background, without transparency")
        picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    except VideoError:
        raise
    except _UNREADABLE as error:
        raise VideoError(f"{path}: has a frame without colours that can be read ({reason(error)})") from error
    return torch.from_numpy(orientation.applied(picture))


def decoded(path: str | Path, container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
    """The stored frames in order. Raises VideoError where the file is damaged or cut off."""
    stream = video_stream(path, container)
    stream.thread_type = "AUTO"
    count = packets = 0
    torn = False
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            torn |= packet.size > 0 and packet.is_corrupt
            for frame in packet.decode():
                count += 1
                yield frame
    except _UNREADABLE as error:
        raise VideoError(f"{path}: cannot be read beyond frame {count} ({reason(error)})") from error
    # Threaded decoders do not report errors in the last packets.
    if torn or packets < _listed(container, stream):
        raise VideoError(f"{path}: cannot be read beyond frame {count}: damaged or cut off")


def _rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _orientation(path: str | Path, frame: av.VideoFrame) -> Orientation:
    entries = cast("list[SideData]", list(frame.side_data))  # typed as a mapping of text, which it is not
    data = next((entry for entry in entries if entry.type == SideDataType.DISPLAYMATRIX), None)
    if data is None:
        return AS_STORED
    try:
        return from_matrix(struct.unpack("=9i", bytes(data)[:36]))
    except (ValueError, struct.error) as error:
        raise VideoError(f"{path}: cannot be shown upright: {error}") from error


def _listed(container: av.container.InputContainer, stream: VideoStream) -> int:
    """The number of packets in the index of an MP4; 0 for other files, whose index may be partial.

    The stream's number of frames would not do: it includes frames that an edit list leaves out.
    """
    if "mp4" not in container.format.name.split(","):
        return 0
    return sum(entry.size > 0 for entry in stream.index_entries)


def reason(error: Exception) -> str:
    """Why FFmpeg or the system refuses, in its own words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
