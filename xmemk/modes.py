"""The modes of PyTorch that a call may come in: autocast, a compiler, gradients, forward mode, and
the transforms of torch.func.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Inputs = Sequence[Tensor | None]


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Ends autocast, whose 16-bit products lose what is left when the terms of Eq. 2 cancel."""
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def transformed(tensors: Inputs) -> bool:
    """Whether forward mode, or a transform of torch.func, is under way through one of them."""
    if torch.compiler.is_compiling():
        return torch._C._are_functorch_transforms_active()
    if any(t is not None and torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors):
        return True
    return in_forward_mode(tensors)


def in_forward_mode(tensors: Inputs) -> bool:
    """Whether one of them has a tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def differentiated(tensors: Inputs) -> bool:
    """Whether what is computed from them is recorded for a derivative, of whatever kind."""
    if transformed(tensors):
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def may_look_at(x: Tensor) -> bool:
    """Whether reading the numbers of x waits for no device, breaks no graph and is one look.

    Under torch.vmap there are many tensors in one.
    """
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return x.device.type == "cpu"
