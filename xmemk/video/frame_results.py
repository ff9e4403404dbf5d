"""What a frame leaves in the folder of results: a mask; if asked for, more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..data.masks import labels_of
from ..data.whole_files import is_result, whole_file
from .labels import write_labels

_FAST = 1  # compression of probabilities and cut-outs: files a tenth larger than by default, in a fifth of the time


class FrameResults:
    """The files of frames in one folder.

    ``masks/<frame>.png`` is a palette PNG of labels. It is written last: a frame that has one has
    all its files.

    soft: also ``soft/<object>/<frame>.png``, grey PNGs of the object's probability, 255 for 1.
    cutout: also ``cutouts/<frame>.png``, RGBA PNGs of the frame, whose alpha is the probability
        that a pixel is of any object, 255 for 1. Colours are not multiplied by it.
    """

    def __init__(self, out: Path, *, soft: bool = False, cutout: bool = False) -> None:
        self.masks = out / "masks"
        self._soft = out / "soft" if soft else None
        self._cutouts = out / "cutouts" if cutout else None

    @property
    def folders(self) -> list[Path]:
        """Those there are now."""
        soft = [] if self._soft is None or not self._soft.is_dir() else [*self._soft.iterdir()]
        there = [self.masks, *([] if self._cutouts is None else [self._cutouts]), *soft]
        return [folder for folder in there if folder.is_dir() and not folder.is_symlink()]

    def complete(self, name: str) -> bool:
        """Whether all files of a frame are there."""
        if not is_result(self.masks / f"{name}.png"):
            return False
        if self._cutouts is not None and not is_result(self._cutouts / f"{name}.png"):
            return False
        if self._soft is None:
            return True
        return self._soft.is_dir() and any(is_result(folder / f"{name}.png") for folder in self._soft.iterdir())

    def write(self, name: str, image: Tensor, probability: Tensor, objects: Sequence[int]) -> Tensor:
        """Writes the files of a frame and returns its labels [H, W] uint8.

        image: RGB uint8 [H, W, 3]. probability: [1 + O, H, W], of the background and ``objects``.
        Raises OSError; the mask is then not there.
        """
        labels = labels_of(probability, (0, *objects)).cpu()
        levels = (255 * probability).round().to(torch.uint8).cpu() if self._soft or self._cutouts else None
        if self._soft is not None and levels is not None:
            for label, level in zip(objects, levels[1:]):
                _write_png(self._soft / str(label) / f"{name}.png", level)
        if self._cutouts is not None and levels is not None:
            _write_png(self._cutouts / f"{name}.png", torch.cat([image.cpu(), 255 - levels[0, ..., None]], 2))
        write_labels(self.masks / f"{name}.png", labels)
        return labels


def _write_png(path: Path, pixels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        Image.fromarray(pixels.numpy()).save(unfinished, format="PNG", compress_level=_FAST)
