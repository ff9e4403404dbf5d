"""The frames before a number in reverse order, with a bounded number of them in memory.

A video can be decoded in one direction alone. It is decoded once to note where its frames are, then
part by part, the last part first, each from the key frame before it.
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import av
from torch import Tensor

from .read_ahead import AHEAD, ahead
from .source import FrameSource, VideoFrame
from .video import decoded, open_video, shown, video_stream

_BYTES = 256_000_000  # of decoded frames at a time


def read_backwards(source: FrameSource, start: int) -> Iterator[VideoFrame]:
    """The frames ``start``, ``start`` - 1, ... 0 of a video file or a folder.

    Raises VideoError, as :meth:`FrameSource.read` does.
    """
    if source.names is not None:
        return ahead((source.image_frame(number) for number in range(start, -1, -1)), AHEAD)
    return ahead(_Backwards(source, start).frames(), AHEAD)


class _Backwards:
    """The frames of a video file up to one, in reverse order."""

    def __init__(self, source: FrameSource, start: int) -> None:
        self._source, self._start = source, start
        self._sums: list[int] = []  # a checksum of each frame's pixels
        self._stamps: dict[int, int] = {}  # the number of a frame by its time in units of the time base
        self._keys: list[tuple[int, int]] = []  # key frames: their number and time
        self._unit = Fraction(0)  # the time base, seconds

    def frames(self) -> Iterator[VideoFrame]:
        self._note()
        length = max(8, _BYTES // (3 * self._source.width * self._source.height))
        stamps = {number: stamp for stamp, number in self._stamps.items()}
        for end in range(self._start + 1, 0, -length):
            images = self._part(max(0, end - length), end)
            while images:
                number = max(0, end - length) + len(images) - 1
                time = stamps[number] * self._unit if number in stamps else number / self._source.rate
                yield VideoFrame(number, self._source.name_of(number), images.pop(), time)

    def _note(self) -> None:
        path = self._source.path
        with open_video(path) as container:
            self._unit = video_stream(path, container).time_base or Fraction(0)
            for number, frame in enumerate(islice(decoded(path, container), self._start + 1)):
                self._sums.append(_checksum(shown(path, frame)))
                if frame.pts is not None:
                    self._stamps[frame.pts] = number
                    if frame.key_frame:
                        self._keys.append((number, frame.pts))

    def _part(self, begin: int, end: int) -> list[Tensor]:
        """The images of the frames from ``begin`` to ``end`` - 1."""
        # Decoders do not promise that a jump to a key frame gives the same pixels: we compare.
        before = bisect.bisect_right(self._keys, begin, key=lambda key: key[0])
        if before and self._keys[before - 1][0] > 0:
            images = self._jump(self._keys[before - 1][1], begin, end)
            if [_checksum(image) for image in images] == self._sums[begin:end]:
                return images
        path = self._source.path
        with open_video(path) as container:
            return [shown(path, frame) for frame in islice(decoded(path, container), begin, end)]

    def _jump(self, stamp: int, begin: int, end: int) -> list[Tensor]:
        """The images that come with a jump to a key frame, which may be wrong or too few."""
        path = self._source.path
        images: list[Tensor] = []
        with open_video(path) as container:
            stream = video_stream(path, container)
            try:
                container.seek(stamp, stream=stream)
                for frame in container.decode(stream):
                    number = None if frame.pts is None else self._stamps.get(frame.pts)
                    if number is None or number >= end:
                        break
                    if number >= begin:
                        images.append(shown(path, frame))
            except av.FFmpegError:
                pass
        return images


def _checksum(image: Tensor) -> int:
    return zlib.crc32(image.numpy().data)
