"""potentiate: Eq. 3, shrinkage and values of all candidates averaged for each prototype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from .library import Tensors, define, empty_readout, fake, triton_kernel
from .native import kernels

define("potentiate(Tensor[] mk, Tensor[] ms, Tensor[] mv, Tensor pk, Tensor? pe) -> (Tensor shrinkage, Tensor values)")
_potentiate = torch.ops.xmemk.potentiate.default


def potentiate(memory: MemoryInputs, prototypes: QueryInputs) -> tuple[Tensor, Tensor]:
    """-> ps [B, 1, P] float32, pv [B, O, CV, P]"""
    mk, ms, mv = memory
    shrinkage, values = _potentiate(mk, ms or [], mv, *prototypes)
    return shrinkage, values


@fake("potentiate")
def _fake(mk: Tensors, ms: Tensors, mv: Tensors, pk: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor]:
    b, _, p = pk.shape
    return pk.new_empty((b, 1, p), dtype=torch.float32), empty_readout(mv[0], p)


@triton_kernel("potentiate")
def _triton(mk: Tensors, ms: Tensors, mv: Tensors, pk: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = kernels().potentiate(MemoryInputs(mk, ms or None, mv), QueryInputs(pk, pe))
    return result
