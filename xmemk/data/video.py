"""Reading and writing video through PyAV, with one frame in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

import av
import torch
from torch import Tensor

if TYPE_CHECKING:
    from av.video.stream import VideoStream


class VideoError(ValueError):
    """A video that is missing or unreadable; the message is one sentence that names the file."""


@dataclass(frozen=True)
class VideoInfo:
    """What the file says about its video; ``frames`` is None where it does not say."""

    width: int
    height: int
    frames: int | None
    rate: Fraction


def _open(path: str | Path) -> av.container.InputContainer:
    if not Path(path).is_file():
        raise VideoError(f"{path}: no such video file")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a video that can be read ({_reason(error)})") from error
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: has no video stream")
    return container


def probe(path: str | Path) -> VideoInfo:
    """The size, length and rate of a video. Raises VideoError."""
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        if not stream.width or not stream.height:
            raise VideoError(f"{path}: not a video that can be read (it says nothing of its size)")
        return VideoInfo(stream.width, stream.height, stream.frames or None, rate)


def read_frames(path: str | Path, size: tuple[int, int] | None = None, start: int = 0) -> Iterator[Tensor]:
    """The frames from number ``start`` (0-based) on in decode order, as RGB uint8 [H, W, 3].

    size: (width, height) to resize to by area averaging; None for the video's own.

    Raises VideoError where the file is damaged, which may be in the middle, or has no frame
    ``start``.
    """
    width, height = size or (None, None)
    count = packets = 0
    torn = False
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0
                torn |= packet.size > 0 and packet.is_corrupt
                for frame in packet.decode():
                    count += 1
                    if count <= start:
                        continue
                    picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
                    yield torch.from_numpy(picture.to_ndarray())
        except av.FFmpegError as error:
            raise VideoError(f"{path}: cannot be read beyond frame {count} ({_reason(error)})") from error
        # Threaded decoders do not report errors in the last packets.
        if torn or packets < _listed(container):
            raise VideoError(f"{path}: cannot be read beyond frame {count}: damaged or cut off")
    if count <= start:
        raise VideoError(f"{path}: has {count} frames, so there is no frame {start}")


def _listed(container: av.container.InputContainer) -> int:
    """The number of packets in the index of an MP4; 0 for other files, whose index may be partial.

    The stream's number of frames would not do: it includes frames that an edit list leaves out.
    """
    if "mp4" not in container.format.name.split(","):
        return 0
    return sum(entry.size > 0 for entry in container.streams.video[0].index_entries)


class VideoWriter:
    """A context manager that writes frames as H.264 in MP4, which browsers play."""

    def __init__(self, path: str | Path, width: int, height: int, rate: Fraction) -> None:
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        codec = next((c for c in ("libx264", "libopenh264", "mpeg4") if c in av.codecs_available), "mpeg4")
        self._stream = cast("VideoStream", self._container.add_stream(codec, rate=rate))
        # Colour is stored at half the resolution, so an odd last row or column is cut off.
        self._stream.width, self._stream.height = width // 2 * 2, height // 2 * 2
        self._stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            self._stream.options = {"crf": "21", "preset": "veryfast"}

    def write(self, frame: Tensor) -> None:
        """Writes one frame, RGB uint8 [H, W, 3], at least as large as the video."""
        picture = frame[: self._stream.height, : self._stream.width].contiguous().numpy()
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
