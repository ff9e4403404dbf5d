"""Masks drawn over frames."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from .masks import palette, read_mask
from .source import FrameSource
from .video import VideoWriter


def overlay(
    image: Tensor, labels: Tensor, opacity: float = 0.45, tints: Mapping[int, tuple[int, int, int]] | None = None
) -> Tensor:
    """The image [H, W, 3] uint8 with labels [H, W] drawn as tints with a white outline.

    tints: a label's red, green and blue, where they are not to be those of :func:`palette`.
    """
    colours = torch.tensor(palette(), dtype=torch.float32)
    colours[1] = torch.tensor([235.0, 64.0, 52.0])  # the first object in a red that stands out from grey fur
    for label, colour in (tints or {}).items():
        colours[label] = torch.tensor(colour, dtype=torch.float32)
    tint = colours[labels.long()]
    inside = (labels > 0).unsqueeze(2)
    mixed = torch.where(inside, (1 - opacity) * image.float() + opacity * tint, image.float())
    return (
        torch.where(_outline(labels).unsqueeze(2), torch.tensor([255.0, 255.0, 255.0]), mixed).round().to(torch.uint8)
    )


def _outline(labels: Tensor) -> Tensor:
    """Object pixels that are next to another label, [H, W] bool."""
    edge = torch.zeros_like(labels, dtype=torch.bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge & (labels > 0)


def write_overlay(path: Path, source: FrameSource, masks: Path, start: int = 0) -> None:
    """Writes a video of the frames from ``start`` on, each with its mask ``masks/<frame>.png``
    drawn.

    A frame without a mask is written as it is. The file is replaced only when it is complete.
    """
    rate = source.rate or Fraction(25)
    temporary = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        with VideoWriter(temporary, source.width, source.height, rate) as writer:
            for frame in source.read(start):
                file = masks / f"{frame.name}.png"
                writer.write(overlay(frame.image, read_mask(file)) if file.is_file() else frame.image)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
