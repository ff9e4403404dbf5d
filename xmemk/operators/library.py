"""The torch.library of xmemk: what the definitions of its operators share.

An operator is one boundary for torch.compile and autograd, with a kernel for each device: C++ for
the CPU, registered by the extension xmemk._C; for CUDA, C++ there as well or Triton, registered
here. What is plain PyTorch has no operator, so that the compiler sees through it.

In a schema the memory is given as equally long lists of segments: mk[i] [B, CK, N_i],
ms[i] [B, 1, N_i] (an empty list for none), mv[i] [B, O, CV, N_i]; with queries qk [B, CK, Q], and
qe as qk or none. A result that nobody asked for is an empty tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]

LIBRARY = torch.library.Library("xmemk", "DEF")

# Operator name -> its kernel in Triton.
TRITON_KERNELS: dict[str, Callable[..., Any]] = {}

# Device types whose kernels go backward through a dense read from its float32 readout and its
# softmax (memory_read_saving). Those of others compute both again.
SAVES_SOFTMAX = {"cpu"}


def define(schema: str) -> None:
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as what the operator does to tensors without data."""
    return torch.library.register_fake(f"xmemk::{name}", lib=LIBRARY)


def triton_kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as the operator's kernel on CUDA."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        TRITON_KERNELS[name] = function
        LIBRARY.impl(name, function, "CUDA")
        return function

    return register


def empty_readout(mv: Tensor, queries: int) -> Tensor:
    """A readout [B, O, CV, Q] without data, in mv's dtype and with channel stride 1."""
    b, o, cv, _ = mv.shape
    return mv.new_empty((b, queries, o, cv)).permute(0, 2, 3, 1)


def empty_usage(mk: Tensors, qk: Tensor, return_usage: bool) -> Tensor:
    """A usage [B, N] without data; an empty tensor without ``return_usage``."""
    shape = (qk.shape[0], sum(k.shape[2] for k in mk)) if return_usage else (0,)
    return qk.new_empty(shape, dtype=torch.float32)


def or_empty(result: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty((0,), dtype=torch.float32) if result is None else result
