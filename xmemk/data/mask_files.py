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
    if start < 0:
        raise ValueError(f"start: wanted the number of a frame, from 0 on, got {start}")
    if not path.is_dir():
        if source.frames is not None and start >= source.frames:
            raise MaskError(f"{path}: the video has {source.frames} frames, so there is no frame {start} to start with")
        by_frame = {start: path}
    else:
        by_frame = _by_frame(image_files(path, MaskError), source)
        if not by_frame:
            raise MaskError(f"{path}: a folder without masks")
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
    """The labels [H, W] uint8 of a file at the video's size, scaled by nearest neighbour.

    Raises MaskError for a file that does not fit, or of whose objects one has no pixel when scaled.
    """
    mask = rule.labels(file)
    _expect_shape(source, file, mask.shape[1], mask.shape[0])
    size = source.height, source.width
    if mask.shape == size:
        return mask
    scaled = F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]
    lost = sorted(set(mask.unique().tolist()) - set(scaled.unique().tolist()) - {0})
    if lost:
        raise MaskError(
            f"{file}: object {lost[0]} has no pixel at the video's size, {source.width}x{source.height}; "
            "remove it, or give a mask of that size"
        )
    return scaled


def _by_frame(files: list[Path], source: FrameSource) -> dict[int, Path]:
    """The files by frame number, in its order. Raises MaskError for a file of no frame."""
    by_frame: dict[int, Path] = {}
    numbers = {Path(name).stem: number for number, name in enumerate(source.names or ())}
    for file in files:
        if source.names is not None and file.stem not in numbers:
            first, last = source.name_of(0), source.name_of(len(numbers) - 1)
            raise MaskError(f"{file}: the video has no frame of that name ({first} to {last})")
        if source.names is None and (
            not file.stem.isdecimal() or (source.frames is not None and int(file.stem) >= source.frames)
        ):
            last = "" if source.frames is None else f" to {source.frames - 1:05d}"
            raise MaskError(f"{file}: wanted the number of a frame as its name, 00000{last}")
        number = int(file.stem) if source.names is None else numbers[file.stem]
        if number in by_frame:
            raise MaskError(f"{file}: frame {number} has another mask, {by_frame[number].name}; remove one of them")
        by_frame[number] = file
    return dict(sorted(by_frame.items()))
