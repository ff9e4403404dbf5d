"""What a mask file stores at each pixel, before it is decided which label that is."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .images import opened, orientation_of

TRANSPARENT = -1  # the value of a pixel without opacity
Kind = Literal["index", "grey", "colour"]
_LOSSY = ("JPEG", "JPEG2000", "MPO", "WEBP")  # WebP counts even if lossless: its header does not say
_SCALES = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of few bits over 0..255


class MaskError(ValueError):
    """A mask that is missing, unreadable or unfit; the message names the file in one sentence."""


@dataclass(frozen=True)
class MaskValues:
    """The pixels of a mask file as shown.

    kind: "index" of a palette, "grey" or "colour".
    values: [H, W]. Indexes and grey as stored, integer or float; colours as 0xRRGGBB;
        TRANSPARENT where a colour has no opacity.
    rgb: [H, W, 3] uint8 on black, if asked for; None of grey with more than 8 bits.
    lossy: the format, if its compression changes pixels. partly: pixels of half opacity.
    colours: of the palette, 0xRRGGBB by index, TRANSPARENT for entries without opacity.
    """

    kind: Kind
    values: NDArray[Any]
    rgb: NDArray[np.uint8] | None
    lossy: str | None = None
    partly: int = 0
    colours: tuple[int, ...] = ()


def read_values(path: str | Path, rgb: bool = False) -> MaskValues:
    """The pixels of a mask file; with ``rgb``, their colours as well.

    Raises MaskError for a file that is no image, or whose channels have 16 bits each."""
    with _opened(path) as image:
        tiles = getattr(image, "tile", None)
        raw = tiles[0][3] if tiles else ""
        raw = raw if isinstance(raw, str) else str(raw[0])
        if image.mode in ("RGB", "RGBA", "LA") and ";16" in raw:
            raise MaskError(f"{path}: has colours of 16 bits a channel; save it as a palette image, or with 8 bits")
        image.load()
        lossy = image.format if image.format in _LOSSY else None
        turn = orientation_of(image).applied
        if image.mode in ("1", "L"):
            stored = turn(np.asarray(image).astype(np.uint8))
            values = stored // _SCALES.get(raw, 1)
            return MaskValues("grey", values, np.repeat(stored[:, :, None], 3, axis=2) if rgb else None, lossy)
        if image.mode == "F" or image.mode.startswith("I"):
            return MaskValues("grey", turn(np.asarray(image)), None, lossy)
        if image.mode == "P" and not rgb:
            return MaskValues("index", turn(np.asarray(image)), None, lossy, colours=_palette(image))
        rgba = turn(np.asarray(image.convert("RGBA")))
        alpha = rgba[:, :, 3:].astype(np.uint16)
        on_black = ((rgba[:, :, :3] * alpha + 127) // 255).astype(np.uint8)
        if image.mode == "P":
            return MaskValues("index", turn(np.asarray(image)), on_black, lossy, colours=_palette(image))
        values = packed(rgba)
        values[alpha[:, :, 0] == 0] = TRANSPARENT
        partly = int(((alpha > 0) & (alpha < 255)).sum())
        return MaskValues("colour", values, on_black, lossy, partly)


def _opened(path: str | Path, pixels: bool = True) -> contextlib.AbstractContextManager[Image.Image]:
    if not Path(path).exists():
        raise MaskError(f"{path}: no such mask file")
    return opened(path, MaskError, pixels)


def packed(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Colours [..., 3 or more] as 0xRRGGBB."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def mask_size(path: str | Path) -> tuple[int, int]:
    """Width and height as shown, read from the header. Raises MaskError for what is no image."""
    with _opened(path, pixels=False) as image:
        if image.format == "TIFF":  # which Pillow turns as it reads the pixels
            image.load()
        return orientation_of(image).size(*image.size)


def stores_labels(path: str | Path) -> bool:
    """Whether the header says that values are labels: of a palette, or grey of at most 8 bits."""
    with _opened(path, pixels=False) as image:
        return image.mode in ("P", "L", "1")


def _palette(image: Image.Image) -> tuple[int, ...]:
    colours = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    alphas = image.info.get("transparency", b"")
    entries = packed(colours).tolist()
    if isinstance(alphas, int):  # the one entry without opacity
        alphas = bytes(255 * (index != alphas) for index in range(len(entries)))
    return tuple(TRANSPARENT if alpha == 0 else colour for colour, alpha in zip(entries, alphas.ljust(256, b"\xff")))
