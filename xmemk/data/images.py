"""Image files: their order in a folder, and reading them without trust in what they contain."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .order import in_order
from .orientation import AS_STORED, EXIF, Orientation
from .video import VideoError

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112  # EXIF's tag
_SHIFTED = ("I;16", "I;16B", "I;16L", "I;16N")  # 16 bits of grey


def image_files(folder: Path, error: type[ValueError], suffixes: Sequence[str] = IMAGES) -> list[Path]:
    """The images of a folder in natural order, by their suffixes. Hidden files are left out.

    Raises ``error`` for a folder that cannot be listed, or where names, which tell results apart,
    are alike but for the suffix.
    """
    try:
        files = in_order(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    except OSError as reason:
        raise error(f"{folder}: the folder cannot be listed ({reason.strerror})") from reason
    stem, count = max(Counter(file.stem for file in files).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise error(f"{folder}: two images of one name, {stem!r}: results could not be told apart")
    return files


@contextlib.contextmanager
def opened(path: str | Path, error: type[ValueError], pixels: bool = True) -> Iterator[Image.Image]:
    """The image of a file, to be read within ``with``.

    pixels: whether more than the header will be read, so that the whole file is to be sound.

    Raises ``error``, in one sentence with the file's name, for whatever goes wrong within ``with``.
    """
    path = Path(path)
    if path.is_dir():
        raise error(f"{path}: a folder, wanted an image")
    if not path.is_file():
        raise error(f"{path}: no such image file")
    try:
        # Of a path, Pillow maps plain TIFFs into memory, and takes the shown width for the stored.
        with path.open("rb") as file, Image.open(file) as image:
            if pixels and image.format == "PNG":  # whose checksums Pillow does not compare as it decodes
                with Image.open(path) as again:
                    again.verify()
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise error(f"{path}: has {image.n_frames} pictures, wanted one; save each as a file of its own")
            yield image
    except error:
        raise
    except PermissionError as reason:
        raise error(f"{path}: cannot be opened ({reason.strerror})") from reason
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as reason:
        raise error(
            f"{path}: says that it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which no frame has; "
            "scale it down"
        ) from reason
    except Exception as reason:  # Pillow's readers raise errors of many types for damaged files
        raise error(f"{path}: not an image that can be read") from reason


def orientation_of(image: Image.Image) -> Orientation:
    """How an image is turned to be shown, from what has been read of it."""
    # PNG's own method would decode all pixels; a TIFF is turned by Pillow as its pixels are read.
    if image.format == "TIFF":
        return AS_STORED
    return EXIF.get(Image.Image.getexif(image).get(_ORIENTATION, 1), AS_STORED)


def read_image(path: str | Path) -> Tensor:
    """The image as a viewer shows it, RGB uint8 [H, W, 3]; of 16 bits, the upper 8.

    Raises VideoError where it cannot be read, has transparent pixels, or has numbers without an
    agreed range (32 bits).
    """
    with opened(path, VideoError) as image:
        image.load()
        if image.mode in _SHIFTED or (image.mode == "I" and image.format == "PNG"):
            grey = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        elif image.mode in ("F", "I"):
            raise VideoError(f"{path}: has 32 bits a channel, whose range is not agreed; save it with 8 or 16 bits")
        else:
            if image.has_transparency_data:
                alpha = image.convert("RGBA").getchannel("A").getextrema()
                if alpha[0] != 255:
                    raise VideoError(f"{path}: has transparent pixels; save it on a background, without transparency")
            pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(orientation_of(image).applied(pixels))
