"""What a memory accepts. Every error names the argument, what was wanted and what came.

Twin of :mod:`xmemk.reference.checks`: the product and its oracle share no code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor


def expect_tensor(
    name: str,
    x: object,
    *,
    ndim: int | None = None,
    shape: tuple[int, ...] | None = None,
    dtypes: tuple[torch.dtype, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """TypeError for anything but a floating tensor of these types.

    ValueError for another shape or device.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: wanted a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: wanted a floating type, got {x.dtype}")
    if ndim is not None and x.dim() != ndim:
        raise ValueError(f"{name}: wanted {ndim} dimensions, got shape {list(x.shape)}")
    if shape is not None and tuple(x.shape) != shape:
        raise ValueError(f"{name}: wanted shape {list(shape)}, got {list(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        raise TypeError(f"{name}: wanted {' or '.join(map(str, dict.fromkeys(dtypes)))}, got {x.dtype}")
    if device is not None and x.device != device:
        raise ValueError(f"{name}: wanted a tensor on {device}, got one on {x.device}")


def expect_finite(name: str, x: Tensor | None, largest: float = math.inf) -> None:
    """ValueError for NaN, Inf, or a magnitude above ``largest``. Waits for the device.

    Such a number, once stored, would be read again with every frame.
    """
    if x is None or x.numel() == 0:
        return
    # One pass in memory order. Both extremes are NaN where any number is.
    stride = x.stride()
    x = x.detach().permute(sorted(range(x.dim()), key=lambda axis: -stride[axis]))
    low, high = (float(number) for number in x.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name}: wanted finite numbers, got {bad} of {x.numel()} that are NaN or Inf")
    if max(-low, high) > largest:
        raise ValueError(f"{name}: wanted numbers of at most {largest:g}, as it is stored, got {max(-low, high):g}")


def check_labels(name: str, objects: Sequence[int]) -> tuple[int, ...]:
    """Labels as a tuple.

    TypeError for anything but whole numbers; ValueError for none, one below 1, or one twice.
    """
    if isinstance(objects, (str, bytes)) or not isinstance(objects, Sequence):
        raise TypeError(f"{name}: wanted a sequence of labels, got {type(objects).__name__}")
    for label in objects:
        if isinstance(label, bool) or not isinstance(label, Integral):
            raise TypeError(f"{name}: wanted whole numbers, got {label!r}")
    labels = tuple(int(label) for label in objects)
    if not labels:
        raise ValueError(f"{name}: wanted at least one label, got none")
    if min(labels) < 1:
        raise ValueError(f"{name}: wanted labels from 1 (0 is the background), got {list(labels)}")
    if len(set(labels)) != len(labels):
        raise ValueError(f"{name}: wanted each label once, got {list(labels)}")
    return labels


def expect_known(name: str, labels: Sequence[int], known: Sequence[int]) -> None:
    """ValueError for a label that is not among the known ones."""
    if not set(labels) <= set(known):
        raise ValueError(f"{name}: wanted labels among {list(known)}, got {list(labels)}")


@dataclass(frozen=True)
class FrameLayout:
    """Sizes, types and device, which the first frame fixes for all later ones."""

    batch: int
    key_channels: int
    value_channels: int
    height: int
    width: int
    key_dtype: torch.dtype
    value_dtype: torch.dtype
    device: torch.device
    has_selection: bool

    @classmethod
    def of(cls, key: Tensor, value: Tensor, selection: Tensor | None) -> FrameLayout:
        """Of a first frame, whose consistency :meth:`check_add` then checks."""
        expect_tensor("key", key, ndim=4)
        expect_tensor("value", value, ndim=5)
        for name, axis in (("B", 0), ("CK", 1), ("H", 2), ("W", 3)):
            if key.shape[axis] == 0:
                raise ValueError(f"key: wanted {name} >= 1, got shape {list(key.shape)}")
        if value.shape[2] == 0:
            raise ValueError(f"value: wanted CV >= 1, got shape {list(value.shape)}")
        b, ck, h, w = key.shape
        return cls(b, ck, value.shape[2], h, w, key.dtype, value.dtype, key.device, selection is not None)

    @property
    def frame(self) -> int:
        """Tokens per frame."""
        return self.height * self.width

    def check_add(
        self,
        key: Tensor,
        shrinkage: Tensor,
        value: Tensor,
        objects: tuple[int, ...],
        selection: Tensor | None,
        *,
        finite: bool,
        largest_value: float = math.inf,
    ) -> None:
        """Checks a memory frame: shapes, types, device and, with ``finite``, its numbers."""
        self._check_key("key", key)
        frame = (self.height, self.width)
        dtypes = (self.key_dtype, torch.float32)
        expect_tensor("shrinkage", shrinkage, shape=(self.batch, 1, *frame), dtypes=dtypes, device=self.device)
        expect_tensor("value", value, ndim=5)
        if value.shape[1] != len(objects):
            raise ValueError(f"value: wanted O = {len(objects)} as in objects, got shape {list(value.shape)}")
        shape = (self.batch, len(objects), self.value_channels, *frame)
        expect_tensor("value", value, shape=shape, dtypes=(self.value_dtype,), device=self.device)
        if (selection is not None) != self.has_selection:
            first, this = ("one", "None") if self.has_selection else ("None", "one")
            raise ValueError(f"selection: wanted {first}, as with the first frame, got {this}")
        if selection is not None:
            self._check_key("selection", selection)
        if finite:
            expect_finite("key", key)
            expect_finite("shrinkage", shrinkage)
            expect_finite("value", value, largest_value)
            expect_finite("selection", selection)

    def check_read(self, query_key: Tensor, selection: Tensor | None, *, finite: bool) -> None:
        """Checks a query: shapes, types, device and, with ``finite``, its numbers."""
        self._check_key("query_key", query_key)
        if finite:
            expect_finite("query_key", query_key)
        if selection is not None:
            self._check_key("selection", selection)
            if finite:
                expect_finite("selection", selection)

    def _check_key(self, name: str, x: Tensor) -> None:
        shape = (self.batch, self.key_channels, self.height, self.width)
        expect_tensor(name, x, shape=shape, dtypes=(self.key_dtype,), device=self.device)


Layout = FrameLayout  # the name in pickles of version 0.1
