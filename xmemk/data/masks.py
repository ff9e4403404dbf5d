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

_LOSSY = ("JPEG", "JPEG2000", "MPO", "WEBP")  # formats that may be; WebP without loss cannot be told by its header


class MaskError(ValueError):
    """A mask that is missing, unreadable or unfit. The message is one sentence for who named it."""


@functools.cache
def palette() -> tuple[tuple[int, int, int], ...]:
    """256 colours: a label's bits, three at a time, fill the colour's bits from the top (PASCAL VOC and DAVIS)."""
    colours = []
    for label in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)


def read_mask(path: str | Path) -> Tensor:
    """Labels [H, W] uint8, 0 the background. Palette and grey images are read as labels, others are a MaskError, and
    so are those of a format that changes pixels.
    """
    with _opened(path) as image:
        labels = np.array(image if image.mode != "1" else image.convert("L").point(lambda v: v // 255))
    return torch.from_numpy(labels)


def mask_size(path: str | Path) -> tuple[int, int]:
    """Width and height, from the header alone. A MaskError where it says that this is no mask."""
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
    """:func:`read_mask`, and a MaskError if there is no object in it."""
    labels = read_mask(path)
    if not bool((labels > 0).any()):
        raise MaskError(f"{path}: has no object, every pixel is background (label 0)")
    return labels


def read_colours(path: str | Path) -> list[int]:
    """The palette of a mask as red, green, blue of label 0, then of label 1, ...; empty for a grey image."""
    with Image.open(path) as image:
        return list(image.getpalette() or []) if image.mode == "P" else []


def write_mask(path: str | Path, labels: Tensor, colours: Sequence[int] | None = None) -> None:
    """Writes labels [H, W] uint8 as a palette PNG. colours: as :func:`read_colours` has them, empty for a grey PNG."""
    if colours is None:
        colours = [value for colour in palette() for value in colour]
    image = Image.fromarray(labels.numpy(), mode="P" if colours else "L")
    if colours:
        image.putpalette(list(colours))
    image.save(path, format="PNG", optimize=False)
