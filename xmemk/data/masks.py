"""Label masks as palette PNGs, in the colours of the DAVIS datasets."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_LOSSY = ("JPEG", "JPEG2000", "MPO", "WEBP")  # WebP is refused even if lossless: its header does not say


class MaskError(ValueError):
    """A mask that is missing, unreadable or unfit; the message names the file in one sentence."""


@functools.cache
def palette() -> tuple[tuple[int, int, int], ...]:
    """The 256 colours of PASCAL VOC and DAVIS, red, green and blue of each label.

    Bits 3 b, 3 b + 1 and 3 b + 2 of a label become bit 7 - b of its red, green and blue.
    """
    colours = []
    for label in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)


def read_mask(path: str | Path) -> Tensor:
    """The labels [H, W] uint8 of a palette or grey image; 0 is the background.

    Raises MaskError for other images, and for formats whose compression changes pixels.
    """
    with _opened(path) as image:
        labels = np.array(image if image.mode != "1" else image.convert("L").point(lambda v: v // 255))
    return torch.from_numpy(labels)


def mask_size(path: str | Path) -> tuple[int, int]:
    """Width and height, read from the header. Raises MaskError where the file is not a mask."""
    with _opened(path) as image:
        return image.size


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    if not Path(path).is_file():
        raise MaskError(f"{path}: no such mask file")
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise MaskError(
                    f"{path}: wanted a palette or grey image of labels, got an image of mode {image.mode}; "
                    "8 bits hold at most 255 objects"
                )
            if image.format in _LOSSY:
                raise MaskError(f"{path}: wanted a PNG of labels, got {image.format}, which changes labels at edges")
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise MaskError(f"{path}: not an image that can be read") from error


def read_object_mask(path: str | Path) -> Tensor:
    """:func:`read_mask`; raises MaskError also for a mask without an object."""
    labels = read_mask(path)
    if not bool((labels > 0).any()):
        raise MaskError(f"{path}: has no object, every pixel is background (label 0)")
    return labels


def read_colours(path: str | Path) -> list[int]:
    """The palette of a mask: red, green, blue of label 0, then of 1, ...; empty if it is grey."""
    with Image.open(path) as image:
        return list(image.getpalette() or []) if image.mode == "P" else []


def write_mask(path: str | Path, labels: Tensor, colours: Sequence[int] | None = None) -> None:
    """Writes labels [H, W] uint8 as a palette PNG.

    colours: as :func:`read_colours` returns them, empty for a grey PNG; None for :func:`palette`.
    """
    if colours is None:
        colours = [value for colour in palette() for value in colour]
    image = Image.fromarray(labels.numpy(), mode="P" if colours else "L")
    if colours:
        image.putpalette(list(colours))
    image.save(path, format="PNG", optimize=False)
