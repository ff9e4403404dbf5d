"""Frames of a video or of a folder of images as one stream, read ahead by a thread: a few in memory at any time."""

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
AHEAD = 4  # frames that are decoded while one is being worked on

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """number: 0-based. name: the image file's, or the number with five digits. image: RGB uint8 [H, W, 3]."""

    number: int
    name: str
    image: Tensor


@dataclass(frozen=True)
class Source:
    """Where frames come from. ``frames`` is how many there are, None where a video does not say."""

    path: Path
    width: int
    height: int
    frames: int | None
    rate: Fraction
    names: tuple[str, ...] | None  # of a folder's images, in order

    def read(self, start: int = 0) -> Iterator[Frame]:
        """Frames from number ``start`` on. VideoError for one that cannot be read or is of another size than the
        first.
        """
        return ahead(self._folder(start) if self.names is not None else self._video(start), AHEAD)

    def name_of(self, number: int) -> str:
        """The name of a frame, without its suffix."""
        return f"{number:05d}" if self.names is None else Path(self.names[number]).stem

    def _video(self, start: int) -> Iterator[Frame]:
        for number, image in enumerate(read_frames(self.path, start=start), start):
            yield self._checked(Frame(number, self.name_of(number), image))

    def _folder(self, start: int) -> Iterator[Frame]:
        assert self.names is not None
        for number, name in enumerate(self.names[start:], start):
            yield self._checked(Frame(number, Path(name).stem, read_image(self.path / name)))

    def _checked(self, frame: Frame) -> Frame:
        height, width = frame.image.shape[:2]
        if (width, height) != (self.width, self.height):
            raise VideoError(
                f"{self.path}: frame {frame.name} is {width}x{height}, wanted {self.width}x{self.height} as the first"
            )
        return frame


def open_source(path: str | Path, rate: Fraction = Fraction(25)) -> Source:
    """A video file, or a folder whose images (.jpg, .png, ...) are its frames in the order of their names.

    rate: frames per second that a folder is taken to have. Raises VideoError.
    """
    path = Path(path)
    if not path.is_dir():
        info = probe(path)
        return Source(path, info.width, info.height, info.frames, info.rate, None)
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
    return Source(path, width, height, len(names), rate, tuple(names))


def read_image(path: str | Path) -> Tensor:
    """RGB uint8 [H, W, 3]. VideoError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise VideoError(f"{path}: not an image that can be read") from error


def _missing(names: list[str]) -> str | None:
    """The first gap where all names are numbers with one distance but for gaps; None where there is none."""
    stems = [Path(name).stem for name in names]
    if len(stems) < 3 or not all(stem.isascii() and stem.isdigit() for stem in stems):
        return None
    numbers = [int(stem) for stem in stems]
    steps = [b - a for a, b in pairwise(numbers)]
    step = min(steps)
    # Sampled videos count in fives, say; a gap is a place where the usual step is left out now and then.
    if step <= 0 or any(s % step for s in steps) or 2 * sum(s != step for s in steps) > len(steps):
        return None
    for number, s in zip(numbers, steps):
        if s != step:
            return str(number + step).zfill(len(stems[0]))
    return None


class _End(Generic[T]):
    """What the reading thread leaves behind the last item: nothing, or what went wrong."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, up to ``count`` of them fetched before they are asked for, by a thread that ends with the
    iteration. What the items raise is raised where it is reached.
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
        except BaseException as error:  # raised again by the one who iterates
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
