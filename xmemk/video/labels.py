"""Label masks: from the tracker's probabilities, and into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..data.masks import labels_of, write_mask
from ..data.source import FrameSource
from ..data.whole_files import whole_file
from ..measure.stopwatch import Stopwatch
from .tracker import Tracker


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
    """The labels [H, W] uint8 of :func:`step_probability`."""
    probability = step_probability(tracker, image, mask, objects, scale=scale, end=end, watch=watch)
    with watch("resizing"):
        return labels_of(probability, (0, *tracker.objects)).cpu()


def step_probability(
    tracker: Tracker,
    image: Tensor,
    mask: Tensor | None = None,
    objects: Sequence[int] | None = None,
    *,
    scale: tuple[int, int] | None,
    end: bool,
    watch: Stopwatch,
) -> Tensor:
    """The probabilities [1 + O, H, W] of one frame [H, W, 3] uint8, at the frame's size.

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
    return probability


def write_labels(path: Path, labels: Tensor, colours: Sequence[int] | None = None) -> None:
    """Writes a mask wholly or not at all.

    colours: as for :func:`xmemk.data.masks.write_mask`. Raises OSError; where there is no space,
    its sentence says which limit was reached.
    """
    with whole_file(path) as unfinished:
        write_mask(unfinished, labels, *([] if colours is None else [colours]))
