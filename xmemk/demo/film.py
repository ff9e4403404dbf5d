"""The demo's moving pictures: the result, the original above it, and a small one for a README."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data.video import VideoInfo
from ..data.video_writer import VideoWriter, time_base_of

LEAD = 2  # seconds before the tint appears
_PICTURE = 420  # pixels of width, and no more than so many frames a second and seconds:
_PICTURE_RATE, _PICTURE_SECONDS = 12, 6


class Film:
    """Writes overlay.mp4, compare.mp4 (the original above the result) and moving.webp to a folder.

    Frames keep their times, the shape of their pixels, and their sound.

    width, height: of the frames. info, video: the video they are from. still: how often the first
    frame is shown before the film begins to move. A context manager.
    """

    def __init__(self, folder: Path, width: int, height: int, info: VideoInfo, video: Path, still: int) -> None:
        self.path = folder
        self.notes: list[str] = []  # what differs from the video, one sentence each
        self._width, self._height = width, height
        self._info, self._video, self._still = info, video, still
        self._begin = Fraction(0)  # of the video's time, which becomes 0
        self._open = contextlib.ExitStack()
        self._writers: list[VideoWriter] = []
        self._every = max(1, round(info.rate / _PICTURE_RATE))
        self._rate = info.rate
        self._size = min(_PICTURE, width), round(min(_PICTURE, width) * height / width)
        self._small: list[Image.Image] = []
        self._count = 0

    def write(self, image: Tensor, result: Tensor, time: Fraction) -> None:
        """One frame and the result, both uint8 [H, W, 3], and the time in the video in seconds."""
        if not self._writers:
            self._begin = time - self._still / self._rate
            self._writers = [self._writer("overlay.mp4", 1), self._writer("compare.mp4", 2)]
            for number in range(self._still):
                self._add(image, image, number / self._rate)
        self._add(image, result, time - self._begin)

    def _writer(self, name: str, high: int) -> VideoWriter:
        writer = VideoWriter(
            self.path / name,
            self._width,
            high * self._height,
            self._rate,
            time_base=time_base_of(self._video),
            pixel_aspect=self._info.pixel_aspect,
            sound=self._video,
            begin=self._begin,
        )
        self.notes += [f"{name} {note}" for note in writer.notes]
        return self._open.enter_context(writer)

    def _add(self, image: Tensor, result: Tensor, time: Fraction) -> None:
        overlay, compare = self._writers
        overlay.write(result, time)
        compare.write(torch.cat([image, result]), time)
        if self._count % self._every == 0 and len(self._small) < _PICTURE_RATE * _PICTURE_SECONDS:
            self._small.append(Image.fromarray(result.numpy()).resize(self._size, Image.Resampling.LANCZOS))
        self._count += 1

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]
        if error[0] is None and self._small:
            first, *rest = self._small
            duration = round(1000 * self._every / self._rate)
            first.save(
                self.path / "moving.webp", save_all=True, append_images=rest, duration=duration, loop=0, quality=50
            )
