"""readout_topk and readout_topk_scaled: Eq. 1 over selected tokens.

The kernels raise IndexError for an index outside 0 .. N - 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..plain.tokens import check_index
from .library import Tensors, define, empty_readout, fake, triton_kernel
from .native import kernels

define("readout_topk(Tensor[] mv, Tensor weight, Tensor index) -> Tensor")
define("readout_topk_scaled(Tensor[] mv, Tensor[] scale, Tensor weight, Tensor index) -> Tensor")
_readout_topk = torch.ops.xmemk.readout_topk.default
_readout_topk_scaled = torch.ops.xmemk.readout_topk_scaled.default


def readout_topk(mv: Tensors, weight: Tensor, index: Tensor) -> Tensor:
    """-> readout [B, O, CV, Q] in mv's dtype"""
    readout: Tensor = _readout_topk(mv, weight, index)
    return readout


def readout_topk_scaled(mv: Tensors, scale: Tensors, weight: Tensor, index: Tensor) -> Tensor:
    """mv of 8 bits -> readout [B, O, CV, Q] float32"""
    readout: Tensor = _readout_topk_scaled(mv, scale, weight, index)
    return readout


@fake("readout_topk")
def _fake(mv: Tensors, weight: Tensor, index: Tensor) -> Tensor:
    return empty_readout(mv[0], index.shape[1])


@fake("readout_topk_scaled")
def _fake_scaled(mv: Tensors, scale: Tensors, weight: Tensor, index: Tensor) -> Tensor:
    return empty_readout(mv[0], index.shape[1]).to(torch.float32)


@triton_kernel("readout_topk")
def _triton(mv: Tensors, weight: Tensor, index: Tensor) -> Tensor:
    check_index(index, sum(v.shape[3] for v in mv))
    readout: Tensor = kernels().readout_topk(mv, weight, index)
    return readout
