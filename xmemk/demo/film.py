"""The demo's moving pictures: the result, the original above it, and a small one for a README."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data.video_writer import VideoWriter

LEAD = 2  # seconds before the tint appears
_PICTURE = 420  # pixels of width, and no more than so many frames a second and seconds:
_PICTURE_RATE, _PICTURE_SECONDS = 12, 6


class Film:
    """Writes overlay.mp4, compare.mp4 (the original above the result) and moving.webp to a folder.

    width, height: of the frames. rate: frames a second. A context manager.
    """

    def __init__(self, folder: Path, width: int, height: int, rate: Fraction) -> None:
        self.path = folder
        self._height = height // 2 * 2
        self._overlay = VideoWriter(folder / "overlay.mp4", width, height, rate)
        self._compare = VideoWriter(folder / "compare.mp4", width, 2 * self._height, rate)
        self._every = max(1, round(rate / _PICTURE_RATE))
        self._rate = rate
        self._size = min(_PICTURE, width), round(min(_PICTURE, width) * height / width)
        self._small: list[Image.Image] = []
        self._count = 0

    def write(self, image: Tensor, result: Tensor) -> None:
        """One frame and what was made of it, both uint8 [H, W, 3]."""
        self._overlay.write(result)
        self._compare.write(torch.cat([image[: self._height], result[: self._height]]))
        if self._count % self._every == 0 and len(self._small) < _PICTURE_RATE * _PICTURE_SECONDS:
            self._small.append(Image.fromarray(result.numpy()).resize(self._size, Image.Resampling.LANCZOS))
        self._count += 1

    def __enter__(self) -> Film:
        self._overlay.__enter__()
        self._compare.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._overlay.__exit__(*error)  # type: ignore[arg-type]
        self._compare.__exit__(*error)  # type: ignore[arg-type]
        if error[0] is None and self._small:
            first, *rest = self._small
            duration = round(1000 * self._every / self._rate)
            first.save(
                self.path / "moving.webp", save_all=True, append_images=rest, duration=duration, loop=0, quality=50
            )
