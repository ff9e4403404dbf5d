"""When the three stores change (Sec. 2.3), counted in frames, and how much room they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.config import MemoryConfig
from .checks import FrameLayout
from .functions import PUBLIC
from .graph import Captures
from .spec import Spec


class FrameTokens(NamedTuple):
    """A memory frame as tokens."""

    key: Tensor  # [B, CK, HW]
    shrinkage: Tensor  # [B, 1, HW]
    selection: Tensor | None  # [B, CK, HW]


@dataclass(frozen=True)
class MemoryRules:
    """The rules of a configuration for frames of a known size."""

    config: MemoryConfig
    layout: FrameLayout
    backend: str
    functions: Any = PUBLIC
    graphs: Captures | None = None

    def spec(self, objects: int) -> Spec:
        """The room for so many objects.

        It suffices however long the video is. Without long-term memory it is the room at the start.
        """
        config, layout = self.config, self.layout
        return Spec(
            batch=layout.batch,
            frame=layout.frame,
            key_channels=layout.key_channels,
            value_channels=layout.value_channels,
            objects=objects,
            key_dtype=layout.key_dtype,
            value_dtype=layout.value_dtype,
            device=layout.device,
            frames=config.max_mid_term_frames,
            long_term=config.max_long_term_elements if config.enable_long_term else 0,
            has_selection=layout.has_selection,
            stored_value_dtype=None if config.value_dtype is None else getattr(torch, config.value_dtype),
            count_long_term=config.enable_long_term_count_usage,
        )

    def is_full(self, frames: int) -> bool:
        """Whether working memory has reached T_max frames."""
        return self.config.enable_long_term and frames >= self.config.max_mid_term_frames

    def candidates(self, frames: int) -> slice:
        """The candidates of a consolidation among so many frames in working memory.

        "The first frame (with user-provided ground-truth) and the most recent T_min - 1 memory
        frames will be kept" (Sec. 2.3), so that T_min frames remain.
        """
        return slice(1, frames - (self.config.min_mid_term_frames - 1))

    def prototypes(self, frames: int) -> int:
        """P, or the number of tokens of so many candidate frames where that is smaller."""
        return min(self.config.num_prototypes, frames * self.layout.frame)

    @property
    def read_options(self) -> dict[str, Any]:
        """Options of a read that is to be recorded: top_k, return_usage, backend."""
        config = self.config
        return {"top_k": config.top_k, "return_usage": config.enable_long_term, "backend": self.backend}

    @property
    def long_term_before_prototypes(self) -> int:
        """The most long-term tokens there may be before P prototypes are appended."""
        return self.config.max_long_term_elements - self.config.num_prototypes


def objects_of(value: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of value [B, O, ...] of some objects: a view where the rows are adjacent."""
    first = rows[0]
    if list(rows) == list(range(first, first + len(rows))):
        return value[:, first : first + len(rows)]
    return value[:, list(rows)]


def bytes_needed(
    config: MemoryConfig,
    *,
    height: int,
    width: int,
    objects: Sequence[int],
    key_channels: int = 64,
    value_channels: int = 512,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
) -> int:
    """:attr:`Memory.nbytes` of a video, however long it is; without long-term memory, at its start.

    height, width: of a frame in tokens, a sixteenth of the picture's in XMem. objects: how many
    objects join at each frame where any join, such as (3, 1) for three and later a fourth. dtype:
    of keys and values. With groups="xmem" later objects need room for their values alone.
    """
    layout = FrameLayout(batch, key_channels, value_channels, height, width, dtype, dtype, torch.device("cpu"), True)
    rules = MemoryRules(config, layout, "auto")
    specs = [rules.spec(count) for count in objects]
    shared = rules.spec(0).nbytes if config.groups == "xmem" else 0
    return sum(spec.nbytes for spec in specs) - shared * max(0, len(specs) - 1)


Rules = MemoryRules  # the name in pickles of version 0.1
