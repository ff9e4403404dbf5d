"""Sizes and types that the storage of a memory is made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALE_GROUP = 128  # channels of an 8-bit value that share a scale
LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True)
class Spec:
    """The sizes, types and room of an arena."""

    batch: int
    frame: int  # tokens per frame, HW
    key_channels: int
    value_channels: int
    objects: int
    key_dtype: torch.dtype
    value_dtype: torch.dtype  # of values as they come, and of readouts
    device: torch.device
    frames: int  # room for frames
    long_term: int = 0  # room for long-term tokens
    has_selection: bool = True
    stored_value_dtype: torch.dtype | None = None  # None: value_dtype; int8 and float8_e4m3fn have scales
    count_long_term: bool = True  # usage of long-term tokens, which eviction needs

    @property
    def number(self) -> torch.dtype:
        """The type of shrinkage and use: float32, or float64 with float64 keys."""
        return torch.promote_types(self.key_dtype, torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of an arena before it grows.

        Each of ``long_term`` + ``frames`` * HW tokens has a key, a shrinkage, a use and a birth (8
        bytes each) and a value per object. Each token of a frame also has a selection.
        """
        in_frames = self.frames * self.frame
        key = self.key_channels * self.key_dtype.itemsize
        stored = self.stored_value_dtype or self.value_dtype
        value = self.value_channels * stored.itemsize + self.value_scales * 4
        token = key + self.number.itemsize + 8 + 8 + self.objects * value
        selection = in_frames * key if self.has_selection else 0
        return self.batch * ((self.long_term + in_frames) * token + selection)

    @property
    def value_scales(self) -> int:
        """Scales per value: one per started group of SCALE_GROUP channels, 0 unless of 8 bits."""
        return -(-self.value_channels // SCALE_GROUP) if self.stored_value_dtype in LARGEST_CODE else 0
