"""Label masks: from the tracker's probabilities, and into files."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.masks import write_mask
from ..data.source import FrameSource
from ..measure.stopwatch import Stopwatch
from .tracker import Tracker

_NO_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than files may be here",
}


def scale_of(source: FrameSource, size: int) -> tuple[int, int] | None:
    """The (H, W) that the network sees, with a shorter side of ``size``.

    None stands for the video's own size, which a ``size`` of 0 asks for.
    """
    shorter = min(source.height, source.width)
    if size <= 0 or shorter == size:
        return None
    return int(source.height / shorter * size), int(source.width / shorter * size)


def step_labels(
    tracker: Tracker,
    image: Tensor,
    mask: Tensor | None = None,
    objects: Sequence[int] | None = None,
    *,
    scale: tuple[int, int] | None,
    end: bool,
    watch: Stopwatch,
) -> Tensor:
    """The labels [H, W] uint8 of one frame [H, W, 3] uint8, at the frame's size.

    mask, objects, end: as for :meth:`Tracker.step`; the mask has labels at the frame's size.
    scale: the (H, W) that the network sees, as :func:`scale_of` returns it.
    """
    size = image.shape[:2]
    with watch("resizing"):
        image = image.permute(2, 0, 1).to(tracker.device).contiguous()
        if scale is not None:
            image = F.interpolate(image[None] / 255, scale, mode="bilinear", antialias=True)[0].clamp(0, 1)
            if mask is not None:
                mask = F.interpolate(mask[None, None], scale, mode="nearest")[0, 0]
    probability = tracker.step(image, mask, objects, end=end)
    with watch("resizing"):
        if scale is not None:
            probability = F.interpolate(probability[None], size, mode="bilinear")[0]
        return labels_of(probability, (0, *tracker.objects)).cpu()


def labels_of(probability: Tensor, names: Sequence[int]) -> Tensor:
    """The name of the most probable row at each pixel: [R, H, W] and R names -> [H, W] uint8.

    Of equal rows the first wins, as with argmax. The loop over rows is twenty times as fast on a
    CPU as argmax over the first dimension.
    """
    best = probability[0].clone()
    labels = torch.full(best.shape, names[0], dtype=torch.uint8, device=best.device)
    for name, row in zip(names[1:], probability[1:]):
        labels.masked_fill_(row > best, name)
        best = torch.maximum(best, row)
    return labels


def write_labels(path: Path, labels: Tensor, colours: Sequence[int] | None = None) -> None:
    """Writes a mask atomically: a run that is killed while writing leaves no partial file.

    colours: as for :func:`xmemk.data.masks.write_mask`. Raises OSError; where there is no space,
    its sentence says which limit was reached.
    """
    temporary = path.with_suffix(".part")
    try:
        write_mask(temporary, labels, *([] if colours is None else [colours]))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _NO_SPACE:
            what = f"{_NO_SPACE[error.errno]}; masks written so far are kept"
            raise OSError(error.errno, what, str(path)) from error
        raise
