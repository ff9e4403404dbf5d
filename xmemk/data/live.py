"""Streams: frames from a pipe, a camera or an address, which come once and in one direction."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av

from .read_ahead import AHEAD, ahead
from .source import FrameSource, VideoFrame
from .video import VideoError, decoded, info_of, reason, shown, timed, video_stream

_PATIENCE = 30.0  # seconds without a byte from an address
_DEVICES = {"/dev/video": "v4l2"}  # the format of a device whose path begins so


def is_stream(path: str | Path) -> bool:
    """Whether frames come from here once: ``-``, an address, a device or a named pipe."""
    if str(path) == "-" or "://" in str(path):
        return True
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return False


@dataclass(frozen=True)
class StreamSource(FrameSource):
    """A stream as a source of frames. Its frames can be read once, from any number on."""

    frames_left: Iterator[VideoFrame] = field(default_factory=lambda: iter(()), repr=False)
    pipe: _Pipe | None = field(default=None, repr=False)

    def read(self, start: int = 0, count: int = AHEAD, pinned: bool = False) -> Iterator[VideoFrame]:
        """The frames from number ``start`` on; those before are left out.

        Raises VideoError where the stream cannot be read further, or ends before ``start``.
        """
        # Without being stopped, the thread would wait for a byte that may never come.
        stop = self.pipe.stopped.set if self.pipe is not None else lambda: None
        try:
            yield from ahead(self._from(start), count, stop)
        finally:
            if self.pipe is not None:
                self.pipe.close()

    def _from(self, start: int) -> Iterator[VideoFrame]:
        number = -1
        for frame in self.frames_left:
            number = frame.number
            if number >= start:
                yield frame
        if -1 < number < start:  # none come a second time
            raise VideoError(f"{self.path}: ended after {number + 1} frames, so there is no frame {start}")


def open_stream(path: str | Path, form: str | None = None, options: Mapping[str, str] | None = None) -> StreamSource:
    """Opens a stream and waits for its first frame.

    path: ``-`` for standard input; an address, such as ``rtsp://...``; a camera, such as
        ``/dev/video0``; a named pipe.
    form: FFmpeg's name of the format, where the stream does not tell: rawvideo, mjpeg, v4l2, ...
    options: FFmpeg's options of the format, such as video_size, pixel_format and framerate.

    Raises VideoError.
    """
    text = str(path)
    form = form or next((f for prefix, f in _DEVICES.items() if text.startswith(prefix)), None)
    pipe = None
    try:
        if text == "-":
            pipe = _Pipe(0)
        elif "://" not in text and stat.S_ISFIFO(os.stat(text).st_mode):
            pipe = _Pipe(os.open(text, os.O_RDONLY))
        where = pipe or text
        container = av.open(where, "r", form, options=dict(options or {}), timeout=(_PATIENCE, _PATIENCE))
    except (av.FFmpegError, OSError, ValueError) as error:
        hint = ""
        if pipe is not None:
            pipe.close()
            hint = (
                "; a pipe needs a format that can be read in one direction, such as Matroska, MPEG-TS, MJPEG or "
                "fragmented MP4, and frames without a header need --format rawvideo with --option video_size=WxH and "
                "--option pixel_format=rgb24"
            )
        raise VideoError(f"{path}: not a stream that can be read ({reason(error)}){hint}") from error
    stream = video_stream(path, container)
    frames = decoded(path, container)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{path}: a stream without frames")
    info = info_of(path, stream, first)
    size = info.width, info.height
    rest = _numbered(path, timed(chain([first], frames), info.rate), size)
    return StreamSource(
        Path(path), *size, None, info.rate, None, info.pixel_aspect, info.orientation, frames_left=rest, pipe=pipe
    )


def _numbered(
    path: str | Path, frames: Iterator[tuple[Fraction, av.VideoFrame]], size: tuple[int, int]
) -> Iterator[VideoFrame]:
    for number, (time, frame) in enumerate(frames):
        image = shown(path, frame)
        if (image.shape[1], image.shape[0]) != size:
            was, now = f"{size[0]}x{size[1]}", f"{image.shape[1]}x{image.shape[0]}"
            raise VideoError(f"{path}: frame {number} is {now}, wanted {was} as the first")
        yield VideoFrame(number, f"{number:05d}", image, time)


class _Pipe:
    """A file that FFmpeg reads from, whose reads end when it is stopped."""

    def __init__(self, handle: int) -> None:
        self.stopped = threading.Event()
        self._handle = handle

    def close(self) -> None:
        """Closes the file, unless it is standard input."""
        if self._handle > 0:
            os.close(self._handle)
            self._handle = -1

    def read(self, size: int) -> bytes:
        while not self.stopped.is_set() and self._handle >= 0:
            if select.select([self._handle], [], [], 0.1)[0]:
                return os.read(self._handle, size)
        return b""
