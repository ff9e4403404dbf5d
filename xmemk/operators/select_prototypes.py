"""select_prototypes: the P most used tokens (Sec. 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import define, fake

define("select_prototypes(Tensor usage, SymInt num_prototypes) -> Tensor")
# CUDA only. size, one number or [B]: how many of the N tokens of each row there are.
define("select_prototypes_sized(Tensor usage, SymInt num_prototypes, Tensor size) -> Tensor")
_select_prototypes = torch.ops.xmemk.select_prototypes.default
_select_prototypes_sized = torch.ops.xmemk.select_prototypes_sized.default


def select_prototypes(usage: Tensor, num_prototypes: int, size: Tensor | None = None) -> Tensor:
    """usage [B, N] -> index [B, P] int64.

    ``size``, on CUDA only, int32 or int64 on the device, one number or [B]: how many of the N
    tokens of each row there are. Places without a token are -1. Nothing waits for the device.
    """
    if size is None:
        index: Tensor = _select_prototypes(usage, num_prototypes)
    else:
        index = _select_prototypes_sized(usage, num_prototypes, size)
    return index


@fake("select_prototypes")
@fake("select_prototypes_sized")
def _fake(usage: Tensor, num_prototypes: int, size: Tensor | None = None) -> Tensor:
    return usage.new_empty((usage.shape[0], num_prototypes), dtype=torch.int64)
