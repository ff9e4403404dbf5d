"""Preparing a network for inference: the same function up to rounding, in less time."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def tuned(network: Network) -> Network:
    """A copy with every batch normalisation folded into its convolution, weights channels-last.

    The copy computes the same function up to rounding. It can neither be trained nor saved for
    :meth:`xmemk.XMem.from_checkpoint`.
    """
    copied = copy.deepcopy(network).requires_grad_(False)
    for module in list(copied.modules()):
        _fold_children(module)
    for convolution in [module for module in copied.modules() if isinstance(module, nn.Conv2d)]:
        weight = convolution.weight.contiguous(memory_format=torch.channels_last)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
    return copied


def _fold_children(module: nn.Module) -> None:
    """Folds ``bn<i>`` of the module into its ``conv<i>``, and part 1 of a shortcut into part 0."""
    children = dict(module.named_children())
    for name, child in children.items():
        if isinstance(child, nn.BatchNorm2d):
            before = "0" if isinstance(module, nn.Sequential) else name.replace("bn", "conv")
            convolution = children[before]
            assert isinstance(convolution, nn.Conv2d)
            setattr(module, before, folded(convolution, child))
            setattr(module, name, nn.Identity())


def folded(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution equal to ``normalisation(convolution(x))`` with stored statistics.

    Its weights are computed in float64 and rounded once.
    """
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None and variance is not None and convolution.bias is None
    scale = normalisation.weight.double() / (variance.double() + normalisation.eps).sqrt()
    weight = convolution.weight.double() * scale[:, None, None, None]
    bias = normalisation.bias.double() - mean.double() * scale
    merged = copy.deepcopy(convolution)
    merged.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
    merged.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)
    return merged
