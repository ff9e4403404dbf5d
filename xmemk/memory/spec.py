"""What the storage of a memory is made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
    stored_value_dtype: torch.dtype | None = None  # None: as given
    count_long_term: bool = True  # whether long-term tokens have a use, without which none can be evicted

    @property
    def number(self) -> torch.dtype:
        """The type of shrinkage and use: float32, or float64 with float64 keys."""
        return torch.promote_types(self.key_dtype, torch.float32)
