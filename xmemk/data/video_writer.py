"""Writing video through PyAV: frames at their times, with the sound of the video they are from."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

import av
import torch
from torch import Tensor

from .video import open_video, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

_FINEST_MPEG4 = Fraction(1, 60000)  # the MPEG-4 encoder counts time in 16 bits


def time_base_of(path: Path) -> Fraction | None:
    """Seconds of which the times of a video's frames are multiples, None where it does not say."""
    with open_video(path) as container:
        return video_stream(path, container).time_base


class VideoWriter:
    """A context manager that writes frames as H.264 in MP4, which browsers play.

    H.264 stores even sizes: of an odd one the last column or row is written twice.

    rate: frames per second, for frames that are written without a time.
    time_base: seconds; times are rounded to multiples of it. The default is 1 / rate.
    pixel_aspect: width of a pixel to its height.
    sound: a video whose sound is copied as it is stored, from ``begin`` on, in seconds, which is 0
        in the new one.
    ends_early: whether the sound ends with the last frame, of whatever comes after it.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        rate: Fraction,
        *,
        time_base: Fraction | None = None,
        pixel_aspect: Fraction = Fraction(1),
        sound: Path | None = None,
        begin: Fraction = Fraction(0),
        ends_early: bool = False,
    ) -> None:
        self.notes: list[str] = []  # what differs from what was asked for, as sentences without a subject
        self.begin = begin
        self._rate, self._ends_early = rate, ends_early
        self._time_base = time_base or 1 / rate
        self._last: Fraction | None = None  # time of the last frame
        self._ticks = -1  # the same in units of the time base
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        codec = next((c for c in ("libx264", "libopenh264", "mpeg4") if c in av.codecs_available), "mpeg4")
        if codec == "mpeg4" and self._time_base.denominator > _FINEST_MPEG4.denominator:
            self._time_base = _FINEST_MPEG4
        self._stream = cast("VideoStream", self._container.add_stream(codec, rate=rate))
        # Colour is stored at half the resolution, hence the even size.
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self._time_base
        self._stream.codec_context.sample_aspect_ratio = pixel_aspect
        if codec == "libx264":
            self._stream.options = {"crf": "21", "preset": "veryfast"}
        if width % 2 or height % 2:
            twice = " and ".join(["last column"] * (width % 2) + ["last row"] * (height % 2))
            self.notes.append(f"is {self._stream.width}x{self._stream.height}: H.264 wants even sizes, the {twice} "
                              "is there twice")  # fmt: skip
        self._sound = None if sound is None else _Sound(sound, self._container, begin, self.notes)

    def write(self, frame: Tensor, time: Fraction | None = None) -> None:
        """Writes one frame, RGB uint8 [H, W, 3], of the video's size.

        time: seconds, from 0. None stands for the time 1 / rate after the last frame.
        """
        if time is None:
            time = Fraction(0) if self._last is None else self._last + 1 / self._rate
        self._last = time
        if self._sound is not None:
            self._sound.copy(time)
        for axis, length in ((0, self._stream.height), (1, self._stream.width)):
            if frame.shape[axis] < length:
                frame = torch.cat([frame, frame.narrow(axis, length - 2, 1)], axis)
        picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        self._ticks = max(round(time / self._time_base), self._ticks + 1)
        picture.time_base, picture.pts = self._time_base, self._ticks
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
                if self._sound is not None:
                    last = self._last if self._ends_early else None
                    self._sound.copy(None if last is None else last + 1 / self._rate)
        finally:
            if self._sound is not None:
                self._sound.close()
            self._container.close()


class _Sound:
    """The stored sound of a video, copied into another as far as asked for."""

    def __init__(self, path: Path, into: OutputContainer, begin: Fraction, notes: list[str]) -> None:
        self._path, self._into, self._begin, self._notes = path, into, begin, notes
        self._source: InputContainer = av.open(str(path))
        self._streams: dict[int, Stream] = {}  # by index in the source
        for stream in self._source.streams.audio:
            codec = stream.codec_context.codec.canonical_name
            if codec in into.supported_codecs:
                self._streams[stream.index] = into.add_stream_from_template(stream)
            else:
                notes.append(f"is without the sound of {path}: MP4 does not hold {codec}")
        self._packets = self._following()
        self._next = next(self._packets, None)

    def copy(self, time: Fraction | None) -> None:
        """Copies what begins before ``time``, in seconds of the new video; None: all the rest."""
        while self._next is not None and (time is None or self._next[0] < time):
            self._into.mux(self._next[1])
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._source.close()

    def _following(self) -> Iterator[tuple[Fraction, av.Packet[Stream]]]:
        """The packets to copy with their times in the new video."""
        if not self._streams:
            return
        try:
            for packet in self._source.demux([self._source.streams[i] for i in self._streams]):
                if packet.pts is None or packet.dts is None or packet.time_base is None:
                    continue
                time = packet.pts * packet.time_base
                if time < self._begin and self._begin > 0:  # else it is a decoder's lead-in, before 0
                    continue
                earlier = round(self._begin / packet.time_base)
                packet.pts -= earlier
                packet.dts -= earlier
                packet.stream = self._streams[packet.stream.index]
                yield time - self._begin, packet
        except av.FFmpegError as error:
            self._notes.append(f"has the sound of {self._path} only as far as it can be read ({error.strerror})")
