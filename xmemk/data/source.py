"""The frames of a video or of a folder of images as one stream, read ahead by a thread.

Only a few frames are in memory at any time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .video import VideoError, probe, read_frames

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
AHEAD = 4  # frames decoded ahead of the one in use

T = TypeVar("T")


@dataclass(frozen=True)
class VideoFrame:
    """One frame: RGB uint8 [H, W, 3], its 0-based number, and its name without a suffix.

    The name is that of the image file; of a video, the number in five digits.
    """

    number: int
    name: str
    image: Tensor


@dataclass(frozen=True)
class FrameSource:
    """A video or a folder of images.

    frames: their number, None where the video does not say. names: of a folder's images, in order.
    """

    path: Path
    width: int
    height: int
    frames: int | None
    rate: Fraction
    names: tuple[str, ...] | None

    def read(self, start: int = 0) -> Iterator[VideoFrame]:
        """The frames from number ``start`` on.

        Raises VideoError at a frame that cannot be read or whose size is not that of the first.
        """
        return ahead(self._folder(start) if self.names is not None else self._video(start), AHEAD)

    def name_of(self, number: int) -> str:
        """The name of a frame, without its suffix."""
        return f"{number:05d}" if self.names is None else Path(self.names[number]).stem

    def _video(self, start: int) -> Iterator[VideoFrame]:
        for number, image in enumerate(read_frames(self.path, start=start), start):
            yield self._checked(VideoFrame(number, self.name_of(number), image))

    def _folder(self, start: int) -> Iterator[VideoFrame]:
        assert self.names is not None
        for number, name in enumerate(self.names[start:], start):
            yield self._checked(VideoFrame(number, Path(name).stem, read_image(self.path / name)))

    def _checked(self, frame: VideoFrame) -> VideoFrame:
        height, width = frame.image.shape[:2]
        if (width, height) != (self.width, self.height):
            raise VideoError(
                f"{self.path}: frame {frame.name} is {width}x{height}, wanted {self.width}x{self.height} as the first"
            )
        return frame


def open_source(path: str | Path, rate: Fraction = Fraction(25)) -> FrameSource:
    """Opens a video file, or a folder whose images (.jpg, .png, ...) are frames in order of name.

    rate: frames per second, for a folder. Raises VideoError.
    """
    path = Path(path)
    if not path.is_dir():
        info = probe(path)
        return FrameSource(path, info.width, info.height, info.frames, info.rate, None)
    names = sorted(p.name for p in path.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    if not names:
        raise VideoError(f"{path}: a folder without images ({', '.join(IMAGES)})")
    doubles = {Path(a).stem for a, b in pairwise(names) if Path(a).stem == Path(b).stem}
    if doubles:
        raise VideoError(f"{path}: two images of one name, {sorted(doubles)[0]!r}: results could not be told apart")
    missing = _missing(names)
    if missing is not None:
        raise VideoError(f"{path}: frame {missing} is missing between {names[0]} and {names[-1]}")
    height, width = read_image(path / names[0]).shape[:2]
    return FrameSource(path, width, height, len(names), rate, tuple(names))


def read_image(path: str | Path) -> Tensor:
    """The image as RGB uint8 [H, W, 3]. Raises VideoError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise VideoError(f"{path}: not an image that can be read") from error


def _missing(names: list[str]) -> str | None:
    """The first missing name of numbers in equal steps; None for other names, or without a gap."""
    stems = [Path(name).stem for name in names]
    if len(stems) < 3 or not all(stem.isascii() and stem.isdigit() for stem in stems):
        return None
    numbers = [int(stem) for stem in stems]
    steps = [b - a for a, b in pairwise(numbers)]
    step = min(steps)
    # Sampled videos may count in fives. A gap is a larger step where most steps are the smallest.
    if step <= 0 or any(s % step for s in steps) or 2 * sum(s != step for s in steps) > len(steps):
        return None
    for number, s in zip(numbers, steps):
        if s != step:
            return str(number + step).zfill(len(stems[0]))
    return None


class _End(Generic[T]):
    """Marks the end of the items in the queue, with the error that ended them if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, of which a thread fetches up to ``count`` before they are needed.

    The thread ends with the iteration. An error of ``items`` is raised where the iteration reaches
    it.
    """
    waiting: queue.Queue[T | _End[T]] = queue.Queue(max(count, 1))
    stopped = threading.Event()

    def offer(item: T | _End[T]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
        except BaseException as error:  # raised again where the iteration reaches it
            offer(_End(error))
        else:
            offer(_End(None))
        finally:
            close: Callable[[], None] | None = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=fetch, name="xmemk-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        thread.join()
