"""Derivatives of plain functions: any order, forward mode, and the transforms of torch.func.

A function is computed without a graph and saves its inputs alone. Its first derivative comes from
formulas where there are some. All others come from computing the function again, with a graph.
Autocast, which may be on when a backward pass runs, is ended there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..modes import Inputs, full_precision, in_forward_mode

Results = tuple[Tensor, ...]
# (gradients of the results, which may be None; the inputs) -> gradients of the inputs
Formulas = Callable[[Inputs, Inputs], Inputs]


def differentiable(function: Callable[..., Results], tensors: Inputs, formulas: Formulas | None = None) -> Results:
    """function(*tensors), whose results are tensors.

    A compiler and forward mode follow the function itself.
    """
    if torch.compiler.is_compiling():
        return function(*tensors)
    if in_forward_mode(tensors) and not torch._C._are_functorch_transforms_active():
        return function(*tensors)
    results: Results = _Recomputed.apply(function, formulas, *tensors)
    return results


def gradients(
    function: Callable[..., Results], tensors: Inputs, needed: Sequence[bool], upstream: Inputs
) -> list[Tensor | None]:
    """The gradients of ``tensors`` that are needed, by computing the function again.

    They can be differentiated where gradients are enabled.
    """
    at = [i for i, need in enumerate(needed) if need]
    inputs = [x for x, need in zip(tensors, needed) if need and x is not None]
    part = _of_some(function, tensors, at)
    if torch._C._are_functorch_transforms_active():
        results, pull_back = torch.func.vjp(part, *inputs)[:2]
        some = pull_back(tuple(torch.zeros_like(r) if u is None else u for r, u in zip(results, upstream)))
    else:
        some = _by_autograd(part, inputs, upstream)
    every: list[Tensor | None] = [None] * len(tensors)
    for i, x, grad in zip(at, inputs, some):
        every[i] = torch.zeros_like(x) if grad is None else grad
    return every


def _by_autograd(part: Callable[..., Results], inputs: list[Tensor], upstream: Inputs) -> Inputs:
    """As torch.func.vjp, which refuses hooks on saved tensors."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # One leaf for each place, also where one tensor stands in two.
        leaves = [x.view_as(x) if further else x.detach().requires_grad_() for x in inputs]
        pairs = [(r, u) for r, u in zip(part(*leaves), upstream) if u is not None and r.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        results, directions = zip(*pairs)
        return torch.autograd.grad(results, leaves, directions, create_graph=further, allow_unused=True)


def _of_some(function: Callable[..., Results], tensors: Inputs, at: Sequence[int]) -> Callable[..., Results]:
    """The function of the tensors at some places; at the others they stay as they are."""

    def part(*some: Tensor) -> Results:
        every = list(tensors)
        for i, x in zip(at, some):
            every[i] = x
        return function(*every)

    return part


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., Results], formulas: Formulas | None, *tensors: Tensor | None) -> Results:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        ctx.function, ctx.formulas, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[2:]
        like = next((u for u in upstream if u is not None), None)
        if like is None:
            return (None,) * (2 + len(tensors))
        with full_precision(like):
            further = torch.is_grad_enabled() or in_forward_mode(upstream)
            if ctx.formulas is not None and not further:
                return None, None, *ctx.formulas(upstream, tensors)
            return None, None, *gradients(ctx.function, tensors, needed, upstream)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Results:
        tensors, moving = ctx.saved_tensors, tangents[2:]
        at = [i for i, t in enumerate(moving) if t is not None]
        part = _of_some(ctx.function, tensors, at)
        with full_precision(moving[at[0]]):
            primals, directions = tuple(tensors[i] for i in at), tuple(moving[i] for i in at)
            return torch.func.jvp(part, primals, directions)[1]
