"""What the storage of a memory is made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALE_GROUP = 128  # channels of a value of 8 bits that share a scale
LARGEST_CODE = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True)
class Spec:
    """What an arena is for: sizes, types, and how much it holds."""

    batch: int
    frame: int  # tokens per frame, HW
    key_channels: int
    value_channels: int
    objects: int
    key_dtype: torch.dtype
    value_dtype: torch.dtype  # of the values given, and of readouts
    device: torch.device
    frames: int  # room for frames
    long_term: int = 0  # room for long-term tokens
    has_selection: bool = True
    stored_value_dtype: torch.dtype | None = None  # None: as given; int8 and float8_e4m3fn come with scales
    count_long_term: bool = True  # whether long-term tokens have a use, without which none can be evicted

    @property
    def number(self) -> torch.dtype:
        """The type of shrinkage and use: float32, or float64 with float64 keys."""
        return torch.promote_types(self.key_dtype, torch.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of an arena before it grows.

        For each of ``long_term`` + ``frames`` * HW tokens a key, shrinkage, use, the read at which it came (8 bytes)
        and a value per object; for each token of a frame also a selection.
        """
        in_frames = self.frames * self.frame
        key = self.key_channels * self.key_dtype.itemsize
        stored = self.stored_value_dtype or self.value_dtype
        value = self.value_channels * stored.itemsize + self.value_scales * 4
        token = key + 2 * self.number.itemsize + 8 + self.objects * value
        selection = in_frames * key if self.has_selection else 0
        return self.batch * ((self.long_term + in_frames) * token + selection)

    @property
    def value_scales(self) -> int:
        """Scales per value: one for each started group of SCALE_GROUP channels, for values of 8 bits."""
        return -(-self.value_channels // SCALE_GROUP) if self.stored_value_dtype in LARGEST_CODE else 0
