"""consolidate on each backend: a step is an operator where the backend has a kernel, else plain.

All of them: -> pk [B, CK, P], ps [B, 1, P], pv [B, O, CV, P].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import plain
from ..inputs import MemoryInputs
from .gather_tokens import gather_tokens
from .library import Tensors
from .native import cuda_error
from .potentiate import potentiate
from .select_prototypes import select_prototypes

Prototypes = tuple[Tensor, Tensor, Tensor]


def consolidate_cpu(memory: MemoryInputs, selection: Tensors | None, usage: Tensor, num_prototypes: int) -> Prototypes:
    """float64 has no kernel for the potentiation."""
    step = plain.potentiate if torch.float64 in (memory.mk[0].dtype, memory.mv[0].dtype) else potentiate
    return plain.consolidate(memory, selection, usage, num_prototypes, select_prototypes, gather_tokens, step)


def consolidate_cuda(memory: MemoryInputs, selection: Tensors | None, usage: Tensor, num_prototypes: int) -> Prototypes:
    """Selection and gathering in C++, potentiation in PyTorch."""
    steps = (select_prototypes, gather_tokens, plain.potentiate)
    return plain.consolidate(memory, selection, usage, num_prototypes, *steps)


def consolidate_triton(
    memory: MemoryInputs, selection: Tensors | None, usage: Tensor, num_prototypes: int
) -> Prototypes:
    """Potentiation in Triton, selection and gathering in C++ where that is built for CUDA."""
    if usage.is_cuda and cuda_error() is None:
        return plain.consolidate(memory, selection, usage, num_prototypes, select_prototypes, gather_tokens, potentiate)
    return plain.consolidate(memory, selection, usage, num_prototypes, potentiate=potentiate)
