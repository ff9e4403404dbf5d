"""What a frame loop accepts: images and masks, checked before the network sees them.

Every error names the argument, what was wanted and what came, and the way out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

_OVERSHOOT = 0.25  # beyond 0 and 1: what bicubic resizing leaves beside sharp edges


def check_image(image: object, size: tuple[int, int] | None, *, first: bool) -> Tensor:
    """The image: RGB [3, H, W], uint8 or floating from 0 to 1, of the ``size`` (H, W) before.

    Numbers are checked on the CPU; elsewhere, where a check waits for the device, on a ``first``
    frame.
    """
    if not isinstance(image, Tensor):
        way = "; torch.from_numpy(image).permute(2, 0, 1) makes one" if type(image).__name__ == "ndarray" else ""
        raise TypeError(f"image: wanted a tensor, got {type(image).__name__}{way}")
    if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"image: wanted RGB of shape [3, H, W], got {list(image.shape)}{_reshaping(image)}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        way = "image.to(torch.uint8) where 255 is white" if not image.is_complex() else "image.real"
        raise TypeError(f"image: wanted uint8 or a floating type, got {image.dtype}; {way}")
    _expect_numbers("image", image)
    if size is not None and tuple(image.shape[1:]) != size:
        raise ValueError(
            f"image: wanted H, W = {size[0]}, {size[1]} as all frames before, got {image.shape[1]}, {image.shape[2]}; "
            "resize it, or start a new Tracker"
        )
    if image.is_floating_point() and (first or image.device.type == "cpu"):
        _check_range(image)
    return image


def _expect_numbers(name: str, x: Tensor) -> None:
    if x.is_meta:
        raise ValueError(f"{name}: wanted a tensor with numbers, got one on the meta device")
    if x.layout != torch.strided:
        raise ValueError(f"{name}: wanted a dense tensor, got {x.layout}; {name}.to_dense() makes one")


def _reshaping(image: Tensor) -> str:
    """How an image of another shape becomes [3, H, W]."""
    shape = tuple(image.shape)
    if len(shape) == 3 and shape[2] in (3, 4):
        return f"; image{'' if shape[2] == 3 else '[..., :3]'}.permute(2, 0, 1) puts channels first"
    if len(shape) == 3 and shape[0] == 4:
        return "; image[:3] leaves the fourth channel out"
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
        return "; image.expand(3, -1, -1) makes RGB of grey"
    return "; frames come one by one: image[0]" if len(shape) == 4 else ""


def _check_range(image: Tensor) -> None:
    low, high = (float(x) for x in image.detach().float().aminmax())
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        return
    seen = f"image: wanted numbers from 0 to 1, got {low:.4g} to {high:.4g}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{seen}: some are NaN or Inf")
    if low < -_OVERSHOOT:
        raise ValueError(f"{seen}, as of a normalised image; pass it as it was before: the tracker normalises")
    white = 255 if high <= 255.5 else 65535 if high <= 65535.5 else None
    raise ValueError(f"{seen}; " + (f"divide it by {white}" if white else "scale it so that 1 is white"))


def mask_rows(
    mask: object, objects: Sequence[int] | None, size: torch.Size, device: torch.device
) -> tuple[Tensor | None, tuple[int, ...]]:
    """The mask as rows [O, H, W] float32 on the device, None without objects; its labels."""
    if mask is None:
        if objects is not None:
            raise ValueError("objects: wanted None without a mask")
        return None, ()
    if not isinstance(mask, Tensor):
        way = "; torch.from_numpy(mask) makes one" if type(mask).__name__ == "ndarray" else ""
        raise TypeError(f"mask: wanted a tensor, got {type(mask).__name__}{way}")
    if tuple(mask.shape[-2:]) != tuple(size) or mask.dim() not in (2, 3):
        raise ValueError(f"mask: wanted H, W = {size[0]}, {size[1]} as the image, got shape {list(mask.shape)}")
    if mask.is_complex():
        raise TypeError(f"mask: wanted labels of an integer type, or rows [O, H, W], got {mask.dtype}")
    _expect_numbers("mask", mask)
    mask = mask.to(device)
    if mask.dim() == 3:
        return _probabilities(mask, objects)
    if mask.is_floating_point() or mask.dtype == torch.bool:
        way = "mask.long() has labels" if mask.dtype == torch.bool else "mask[None] with objects=[1] is a row"
        raise TypeError(f"mask: wanted labels of an integer type, or rows [O, H, W], got {mask.dtype}; {way}")
    mask = mask.long()
    present = check_labels("mask", [int(label) for label in mask.unique() if label != 0])
    labels = present if objects is None else check_labels("objects", objects)
    unknown = sorted(set(present) - set(labels))
    if unknown:
        raise ValueError(f"mask: wanted labels among objects = {list(labels)} and 0, got {unknown}")
    if not labels:
        return None, ()
    return torch.stack([mask == label for label in labels]).float(), labels


def _probabilities(mask: Tensor, objects: Sequence[int] | None) -> tuple[Tensor, tuple[int, ...]]:
    if objects is None:
        raise ValueError("objects: wanted the labels of the mask's rows, got None")
    labels = check_labels("objects", objects)
    if len(labels) != mask.shape[0]:
        raise ValueError(f"mask: wanted {len(labels)} rows as objects has labels, got {mask.shape[0]}")
    rows = mask.float()
    if rows.numel() and not bool(((rows >= 0) & (rows <= 1)).all()):
        low, high = (float(x) for x in rows.aminmax())
        way = "; divide it by 255" if low >= 0 and 1 < high <= 255 else ""
        raise ValueError(f"mask: wanted probabilities, from 0 to 1, got {low:.4g} to {high:.4g}{way}")
    return rows, labels


def check_labels(name: str, objects: Sequence[int]) -> tuple[int, ...]:
    """Labels as a tuple.

    TypeError for anything but whole numbers; ValueError for one below 1, or one twice.
    """
    try:
        labels = tuple(operator.index(label) for label in objects)
    except TypeError:
        raise TypeError(f"{name}: wanted whole numbers, got {objects!r}") from None
    if len(set(labels)) != len(labels) or any(label < 1 for label in labels):
        raise ValueError(f"{name}: wanted each label once, from 1, got {list(labels)}")
    return labels
