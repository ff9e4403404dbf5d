"""Colours for objects that the picture does not have, so that a tint is seen as one."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image
from torch import Tensor

_HUES = 36
_NEAR = 9  # steps of hue to either side that count, the less the farther


def tints(image: Tensor, labels: Tensor) -> dict[int, tuple[int, int, int]]:
    """A colour, red, green and blue of 0 to 255, for each label [H, W] but 0 of an image [H, W, 3]
    uint8.

    It is the hue that is rarest in the object, in the whole picture, and among the other objects'.
    """
    hue, saturation, value = np.moveaxis(np.asarray(Image.fromarray(image.numpy()).convert("HSV")), 2, 0)
    step = hue.astype(np.int64) * _HUES // 256
    colourful = saturation / 255.0 * value / 255.0
    everywhere = _spread(np.bincount(step.ravel(), colourful.ravel(), _HUES) / step.size)
    taken = np.zeros(_HUES)
    colours = {}
    for label in labels.unique().tolist():
        if label:
            inside = (labels == label).numpy()
            own = _spread(np.bincount(step[inside], colourful[inside], _HUES) / inside.sum())
            best = int(np.argmin(own + everywhere / 2 + taken))
            taken += _spread(np.eye(_HUES)[best])
            red, green, blue = colorsys.hsv_to_rgb((best + 0.5) / _HUES, 0.9, 1.0)
            colours[label] = round(255 * red), round(255 * green), round(255 * blue)
    return colours


def _spread(histogram: np.ndarray) -> np.ndarray:
    """Every hue counts for those near it, too."""
    steps = range(-_NEAR, _NEAR + 1)
    return np.sum([np.roll(histogram, s) * (1 - abs(s) / (_NEAR + 1)) for s in steps], axis=0)
