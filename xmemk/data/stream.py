"""Frames for any loop over a video, in one line, with a few of them in memory at any time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch

from .read_ahead import AHEAD
from .source import Missing, VideoFrame, open_source


def frames(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    start: int = 0,
    count: int = AHEAD,
    rate: Fraction = Fraction(25),
    missing: Missing = "error",
) -> Iterator[VideoFrame]:
    """The frames of a video or of a folder of images from number ``start`` on, on a device.

    ::

        for frame in xmemk.data.stream.frames("video.mp4", "cuda"):
            probability = tracker.step(frame.image.permute(2, 0, 1))

    Frames are as a player shows them, RGB uint8 [H, W, 3]; see :class:`VideoFrame`. A thread
    decodes up to ``count`` frames ahead. For CUDA it puts them into pinned memory, from which they
    are copied beside the work of the current stream. Memory does not grow with the video.

    rate, missing: as for :func:`xmemk.data.source.open_source`.

    Raises VideoError: for a source that cannot be opened at once, for a frame when it is reached.
    The thread ends with the iteration.
    """
    device = torch.device(device)
    source = open_source(path, rate, missing)
    read = source.read(start, count, pinned=device.type == "cuda")
    return (replace(frame, image=frame.image.to(device, non_blocking=True)) for frame in read)
