"""When the three stores change (Sec. 2.3), counted in frames, and how much room that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference.config import MemoryConfig
from .checks import Layout
from .functions import PUBLIC
from .graph import Captures
from .spec import Spec


class Frame(NamedTuple):
    """A memory frame as tokens: key [B, CK, HW], shrinkage [B, 1, HW], selection [B, CK, HW] or None."""

    key: Tensor
    shrinkage: Tensor
    selection: Tensor | None


@dataclass(frozen=True)
class Rules:
    """The configuration's rules for frames of a known size."""

    config: MemoryConfig
    layout: Layout
    backend: str
    functions: Any = PUBLIC
    graphs: Captures | None = None

    def spec(self, objects: int) -> Spec:
        """The room that these objects need, however long the video is; without long-term memory, for a start."""
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
        """Which of so many frames in working memory are the candidates of a consolidation.

        "The first frame (with user-provided ground-truth) and the most recent T_min - 1 memory frames will be kept"
        (Sec. 2.3), so that T_min frames remain.
        """
        return slice(1, frames - (self.config.min_mid_term_frames - 1))

    def prototypes(self, frames: int) -> int:
        """P, or all tokens of so many candidate frames where they are fewer."""
        return min(self.config.num_prototypes, frames * self.layout.frame)

    @property
    def long_term_before_prototypes(self) -> int:
        """The most tokens long-term memory may hold when P prototypes are about to be appended."""
        return self.config.max_long_term_elements - self.config.num_prototypes


def objects_of(value: Tensor, rows: Sequence[int]) -> Tensor:
    """These objects of value [B, O, ...]: a view where they lie side by side."""
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
    """What :attr:`Memory.nbytes` will be, however long the video is.

    height, width: of the frames of tokens, a sixteenth of the picture's in XMem. objects: how many join at each frame
    at which some join, (3, 1) for three and later a fourth. dtype: of keys and values. With groups="xmem" later
    objects cost their values alone. Without long-term memory it is what one starts with.
    """
    layout = Layout(batch, key_channels, value_channels, height, width, dtype, dtype, torch.device("cpu"), True)
    rules = Rules(config, layout, "auto")
    specs = [rules.spec(count) for count in objects]
    shared = rules.spec(0).nbytes if config.groups == "xmem" else 0
    return sum(spec.nbytes for spec in specs) - shared * max(0, len(specs) - 1)
