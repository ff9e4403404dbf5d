"""Signs that a mask was smoothed: values that appear only in lines between others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIXELS = 16  # fewer pixels in lines are slivers of objects
_BETWEEN = 0.9  # share of them that lie between a smaller and a larger neighbour
_TABLE = 1 << 25  # values that a table is quicker for than sorting: all colours
_RAMP = 24  # distinct values that make a ramp if nearly all neighbours are next in order


@dataclass(frozen=True)
class Areas:
    """solid: values with a pixel whose eight neighbours have it too, most frequent first.

    lines: the other values; where there are none, those with thin parts.
    smoothed: whether lines look like the edges of a smoothed mask.
    """

    solid: tuple[int, ...]
    lines: tuple[int, ...]
    smoothed: bool


def ranked(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The distinct values in ascending order; of each pixel its place among them; their counts."""
    lowest = values.min()
    span = int(values.max()) - int(lowest) + 1 if values.dtype.kind != "f" else 0
    if not 0 < span <= _TABLE:
        distinct, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        return distinct, places.reshape(values.shape).astype(np.min_scalar_type(len(distinct))), counts
    offsets = values - lowest
    if span <= 1 << 16:
        present = np.bincount(offsets.ravel(), minlength=span) > 0
    else:
        present = np.zeros(span, bool)
        present[offsets] = True
    distinct = np.flatnonzero(present)
    table = np.zeros(span, np.min_scalar_type(len(distinct)))
    table[distinct] = range(len(distinct))
    places = table[offsets]
    return distinct + int(lowest), places, np.bincount(places.ravel(), minlength=len(distinct))


def areas(values: NDArray[Any], ordered: bool, fewest: int = 3) -> Areas:
    """The areas and lines of values [H, W], which are integers.

    ordered: whether those between two others may be their mixtures. fewest: without order, how many
    values in lines are a sign of smoothing, if they are more than those with areas.
    """
    distinct, ranks, counts = ranked(values)
    if len(distinct) <= 2:
        return Areas(tuple(int(distinct[i]) for i in np.argsort(-counts, kind="stable")), (), False)
    lowest, highest = _extremes(ranks)
    has_area = np.zeros(len(distinct), bool)
    has_area[ranks[lowest == highest]] = True
    solid = tuple(int(distinct[i]) for i in np.argsort(-counts, kind="stable") if has_area[i])
    is_line = ~has_area & (distinct > 0)
    lines = tuple(distinct[is_line].tolist())
    many = len(lines) > sum(value > 0 for value in solid) and bool(counts[is_line].sum() >= _PIXELS)
    if not ordered:
        return Areas(solid, lines, many and len(lines) >= fewest)
    # Thin parts, of labels with areas too: 1 around 2 is what smoothing leaves of 0 beside 2.
    in_area = _extremes((lowest == highest).astype(np.uint8))[1] > 0
    thin = ~in_area & (ranks > distinct.searchsorted(0, "right") - 1)
    between = ((lowest < ranks) & (ranks < highest))[thin]
    smoothed = (many and len(lines) >= 8) or (between.size >= _PIXELS and between.mean() >= _BETWEEN)
    lines = lines or tuple(distinct[np.unique(ranks[thin])].tolist())
    return Areas(solid, lines, bool(smoothed) or _is_ramp(ranks, len(distinct)))


def is_outline(values: NDArray[Any], label: int) -> bool:
    """Whether a label is nowhere wider than some five pixels and separates others from 0.

    So is the void around objects in PASCAL VOC.
    """
    inside = values == label
    if inside.sum() < 4 * _PIXELS:
        return False
    pairs = [np.stack([x[1:].ravel(), x[:-1].ravel()]) for x in (values, values.T)]
    one, other = np.concatenate([pair[::step] for pair in pairs for step in (1, -1)], axis=1)
    edges = other[(one != other) & (one > 0) & (one != label)]
    if not edges.size or (edges == label).mean() < _BETWEEN:
        return False
    for _ in range(3):
        inside = _extremes(inside)[0]
    return not inside.any()


def _extremes(ranks: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and the greatest of each pixel's 3 x 3 neighbourhood."""
    lowest = highest = np.pad(ranks, 1, mode="edge")
    for axis in (0, 1):
        low, high = np.moveaxis(lowest, axis, 0), np.moveaxis(highest, axis, 0)
        low = np.minimum(np.minimum(low[:-2], low[1:-1]), low[2:])
        high = np.maximum(np.maximum(high[:-2], high[1:-1]), high[2:])
        lowest, highest = np.moveaxis(low, 0, axis), np.moveaxis(high, 0, axis)
    return lowest, highest


def _is_ramp(ranks: NDArray[Any], distinct: int) -> bool:
    if distinct < _RAMP:
        return False
    steps = np.concatenate([np.abs(np.diff(ranks.astype(np.int32), axis=axis)).ravel() for axis in (0, 1)])
    return bool((steps[steps > 0] <= 2).mean() >= 0.8)
