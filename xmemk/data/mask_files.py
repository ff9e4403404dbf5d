"""The masks that the work on a video is given: which files there are for which frames, and whether they fit."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from .masks import MaskError, mask_size, read_mask
from .source import IMAGES, Source


def find_masks(path: Path, source: Source, start: int = 0) -> dict[int, Path]:
    """Files of masks by frame number, from the first that has an object on; MaskError where they do not fit.

    Of those after the first the headers are read alone: a folder may have a mask for every frame.
    """
    if not path.is_dir():
        if source.frames is not None and start >= source.frames:
            raise MaskError(f"{path}: the video has {source.frames} frames, so there is no frame {start} to start with")
        found = {start: path}
    else:
        files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGES}
        if not files:
            raise MaskError(f"{path}: a folder without masks")
        found = dict(sorted((_number(stem, source, file), file) for stem, file in files.items()))
    for file in found.values():
        _expect_shape(source, file)
    first = next((n for n, file in found.items() if bool((mask_for(source, file) > 0).any())), None)
    if first is None:
        raise MaskError(f"{path}: has no object, every pixel is background (label 0)")
    return {number: file for number, file in found.items() if number >= first}


def _expect_shape(source: Source, file: Path) -> None:
    """A mask is of the video's size, or of its shape to within a pixel of rounding."""
    width, height = mask_size(file)
    aspect = source.width / source.height
    if min(abs(width - height * aspect), abs(height - width / aspect)) >= 1:
        video = f"{source.width}x{source.height}"
        raise MaskError(f"{file}: is {width}x{height}, which is not the shape of the video, {video}")


def mask_for(source: Source, file: Path) -> Tensor:
    """Labels [H, W] uint8 at the video's size. Nearest, so that no label is mixed."""
    mask = read_mask(file)
    size = source.height, source.width
    return mask if mask.shape == size else F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


def _number(stem: str, source: Source, file: Path) -> int:
    if source.names is not None:
        stems = [Path(name).stem for name in source.names]
        if stem not in stems:
            raise MaskError(f"{file}: the video has no frame of that name ({stems[0]} to {stems[-1]})")
        return stems.index(stem)
    if not stem.isdigit() or (source.frames is not None and int(stem) >= source.frames):
        last = "" if source.frames is None else f" to {source.frames - 1:05d}"
        raise MaskError(f"{file}: wanted the number of a frame as its name, 00000{last}")
    return int(stem)
