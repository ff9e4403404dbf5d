"""gather_tokens: the tokens that an index names."""

from __future__ import annotations

import torch
from torch import Tensor

from .library import define, fake

define("gather_tokens(Tensor x, Tensor index) -> Tensor")
_gather_tokens = torch.ops.xmemk.gather_tokens.default


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x [B, ..., N], index [B, P] int64 -> [B, ..., P]"""
    tokens: Tensor = _gather_tokens(x, index)
    return tokens


@fake("gather_tokens")
def _fake(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], index.shape[1]))
