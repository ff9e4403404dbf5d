"""Input masks of a video: which file belongs to which frame, and whether it fits."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from .images import image_files
from .label_rules import LabelRule
from .mask_values import MaskError, mask_size
from .masks import AUTOMATIC
from .source import FrameSource


class MaskFiles(dict[int, Path]):
    """Mask files by frame number, and the rule by which :func:`mask_for` reads their labels."""

    rule: LabelRule = AUTOMATIC


def find_masks(path: Path, source: FrameSource, start: int = 0, rule: LabelRule = AUTOMATIC) -> MaskFiles:
    """The mask files by frame number, beginning with the first one that has an object.

    path: a folder of images named as frames, or the image of frame ``start``. A folder may have a
        mask for every frame, so only headers are read of palette and 8-bit masks after the first.
    rule: how values become labels. That of the result has one number for each colour.

    Raises MaskError where the files do not fit the video.
    """
    if not path.is_dir():
        if source.frames is not None and start >= source.frames:
            raise MaskError(f"{path}: the video has {source.frames} frames, so there is no frame {start} to start with")
        by_frame = {start: path}
    else:
        files = {file.stem: file for file in image_files(path, MaskError)}
        if not files:
            raise MaskError(f"{path}: a folder without masks")
        by_frame = dict(sorted((_number(stem, source, file), file) for stem, file in files.items()))
    for file in by_frame.values():
        _expect_shape(source, file, *mask_size(file))
    rule = rule.fitted(by_frame.values())
    first = next((n for n, file in by_frame.items() if bool((mask_for(source, file, rule) > 0).any())), None)
    if first is None:
        raise MaskError(f"{path}: has no object, every pixel is background (label 0)")
    masks = MaskFiles({number: file for number, file in by_frame.items() if number >= first})
    masks.rule = rule
    return masks


def _expect_shape(source: FrameSource, file: Path, width: int, height: int) -> None:
    """Raises MaskError unless the mask has the shape of frames, or that which players show."""
    shown = source.width * source.pixel_aspect
    if not any(
        min(abs(width - height * w / source.height), abs(height - width * source.height / w)) < 1
        for w in (source.width, shown)
    ):
        video = f"{source.width}x{source.height}"
        turned = ""
        if source.orientation.transposed and abs(height - width * source.width / source.height) < 1:
            turned = f"; its frames are {source.orientation} for display, so turn the mask likewise"
        raise MaskError(f"{file}: is {width}x{height}, which is not the shape of the video, {video}{turned}")


def mask_for(source: FrameSource, file: Path, rule: LabelRule = AUTOMATIC) -> Tensor:
    """The labels [H, W] uint8 of a file at the video's size, scaled by nearest neighbour."""
    mask = rule.labels(file)
    _expect_shape(source, file, mask.shape[1], mask.shape[0])
    size = source.height, source.width
    return mask if mask.shape == size else F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


def _number(stem: str, source: FrameSource, file: Path) -> int:
    if source.names is not None:
        stems = [Path(name).stem for name in source.names]
        if stem not in stems:
            raise MaskError(f"{file}: the video has no frame of that name ({stems[0]} to {stems[-1]})")
        return stems.index(stem)
    if not stem.isdigit() or (source.frames is not None and int(stem) >= source.frames):
        last = "" if source.frames is None else f" to {source.frames - 1:05d}"
        raise MaskError(f"{file}: wanted the number of a frame as its name, 00000{last}")
    return int(stem)
