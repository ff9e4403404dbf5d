"""The frames of a video or of a folder of images as one stream, read ahead by a thread.

Only a few frames are in memory at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

from torch import Tensor

from .images import IMAGES, image_files, read_image
from .orientation import AS_STORED, Orientation
from .read_ahead import AHEAD, ahead
from .video import VideoError, probe, read_timed_frames

Missing = Literal["error", "skip"]


@dataclass(frozen=True)
class VideoFrame:
    """One frame as a player shows it: RGB uint8 [H, W, 3], its 0-based number, and its name.

    The name is that of the image file without its suffix; of a video, the number in five digits.
    time: in seconds, on the clock of the video file, which audio shares; it need not begin at 0.
    """

    number: int
    name: str
    image: Tensor
    time: Fraction = Fraction(0)


@dataclass(frozen=True)
class FrameSource:
    """A video or a folder of images, whose frames are read as a player shows them.

    width, height: of the frames as read. frames: their number, None where the video does not say.
    rate: frames per second, on average. names: of a folder's images, in order.
    pixel_aspect: width by height of a pixel. Frames keep their pixels, so a player shows them
        ``width * pixel_aspect`` wide.
    orientation: how stored frames were turned. Masks are wanted in the shown orientation.
    skipped: how many numbers are missing in a folder that was opened with ``missing="skip"``.
    """

    path: Path
    width: int
    height: int
    frames: int | None
    rate: Fraction
    names: tuple[str, ...] | None
    pixel_aspect: Fraction = Fraction(1)
    orientation: Orientation = AS_STORED
    skipped: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a person, where frames are not shown as they are stored."""
        sentences = []
        size = f"{self.width}x{self.height}"
        if self.orientation != AS_STORED:
            sentences.append(
                f"{self.path}: frames are {self.orientation}, as the file says; masks are in that orientation, {size}"
            )
        if self.pixel_aspect != 1:
            shown = f"{round(self.width * self.pixel_aspect)}x{self.height}"
            sentences.append(f"{self.path}: pixels are not square; masks have {size}, players show {shown}")
        if self.skipped:
            sentences.append(f"{self.path}: {self.skipped} missing frame(s) are left out")
        return tuple(sentences)

    def read(self, start: int = 0, count: int = AHEAD, pinned: bool = False) -> Iterator[VideoFrame]:
        """The frames from number ``start`` on, of which a thread decodes ``count`` ahead.

        pinned: whether images are in memory from which a GPU copies beside its work.

        Raises VideoError at a frame that cannot be read or whose size is not that of the first, and
        where there is no frame ``start``; ValueError for a negative one.
        """
        if start < 0:
            raise ValueError(f"start: wanted the number of a frame, from 0 on, got {start}")
        frames = self._video(start) if self.names is None else self._folder(start)
        return ahead((replace(f, image=f.image.pin_memory()) for f in frames) if pinned else frames, count)

    def name_of(self, number: int) -> str:
        """The name of a frame, without its suffix."""
        return f"{number:05d}" if self.names is None else Path(self.names[number]).stem

    def _video(self, start: int) -> Iterator[VideoFrame]:
        for number, (time, image) in enumerate(read_timed_frames(self.path, start=start), start):
            yield self._checked(VideoFrame(number, self.name_of(number), image, time))

    def _folder(self, start: int) -> Iterator[VideoFrame]:
        assert self.names is not None
        if start >= len(self.names):
            raise VideoError(f"{self.path}: has {len(self.names)} frames, so there is no frame {start}")
        yield from map(self.image_frame, range(start, len(self.names)))

    def image_frame(self, number: int) -> VideoFrame:
        """A frame of a folder of images."""
        assert self.names is not None
        name = self.names[number]
        return self._checked(VideoFrame(number, Path(name).stem, read_image(self.path / name), number / self.rate))

    def _checked(self, frame: VideoFrame) -> VideoFrame:
        height, width = frame.image.shape[:2]
        if (width, height) != (self.width, self.height):
            raise VideoError(
                f"{self.path}: frame {frame.name} is {width}x{height}, wanted {self.width}x{self.height} as the first"
            )
        return frame


def open_source(path: str | Path, rate: Fraction = Fraction(25), missing: Missing = "error") -> FrameSource:
    """Opens a video file, or a folder whose images (.jpg, .png, ...) are frames.

    Images are in the natural order of their names: 2.png is before 10.png.

    rate: frames per second, for a folder.
    missing: of a folder whose numbers have a gap: "error" refuses it, "skip" goes on without the
        missing frames.

    Raises VideoError; ValueError for another value of ``missing``.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"missing: wanted 'error' or 'skip', got {missing!r}")
    if not rate > 0:
        raise ValueError(f"rate: wanted frames per second, got {rate}")
    path = Path(path)
    if not path.is_dir():
        info = probe(path)
        return FrameSource(
            path, info.width, info.height, info.frames, info.rate, None, info.pixel_aspect, info.orientation
        )
    files = image_files(path, VideoError)
    if not files:
        raise VideoError(f"{path}: a folder without images ({', '.join(IMAGES)})")
    names = tuple(file.name for file in files)
    absent = _missing(path, [file.stem for file in files])
    if absent and missing == "error":
        more = f" and {len(absent) - 1} more are missing" if len(absent) > 1 else " is missing"
        raise VideoError(
            f"{path}: frame {absent[0]}{more} between {names[0]} and {names[-1]}; "
            "give missing='skip' (--missing skip) to go on without"
        )
    height, width = read_image(files[0]).shape[:2]
    return FrameSource(path, width, height, len(names), rate, names, skipped=len(absent))


def _missing(path: Path, stems: list[str]) -> list[str]:
    """The missing names, where names are alike but for a number that grows in equal steps.

    None of other names, or without a gap. Raises VideoError for two names of one number.
    """
    matches = [re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", stem, re.DOTALL) for stem in stems]
    parts = [match.groups() for match in matches if match is not None]
    if len(parts) < len(stems) or len({(before, after) for before, _, after in parts}) > 1:
        return []
    numbers = [int(number) for _, number, _ in parts]
    steps = [b - a for a, b in pairwise(numbers)]
    if 0 in steps:
        one, other = stems[steps.index(0)], stems[steps.index(0) + 1]
        raise VideoError(f"{path}: frames {one} and {other} have one number, so their order is not known; rename one")
    step = min(steps, default=0)
    # Sampled videos may count in fives. A gap is a larger step where most steps are the smallest.
    if len(steps) < 2 or any(s % step for s in steps) or 2 * sum(s != step for s in steps) > len(steps):
        return []
    before, after, digits = parts[0][0], parts[0][2], min(len(number) for _, number, _ in parts)
    return [f"{before}{n:0{digits}d}{after}" for a, b in pairwise(numbers) for n in range(a + step, b, step)]
