"""A network made ready for inference: the same function to rounding, in less time."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .network import XMem


def tuned(network: XMem, *, compile: bool = False) -> XMem:
    """A copy of the network whose normalisations are folded into the convolutions before them, in channels-last.

    compile: its three stages by torch.compile, which takes a minute at the first frames and again where the size or,
    once, the number of objects changes.

    The copy computes what the network does but for rounding; it cannot be trained, nor saved for ``from_checkpoint``.
    """
    made = copy.deepcopy(network).requires_grad_(False)
    for module in list(made.modules()):
        _fold_children(module)
    for convolution in [module for module in made.modules() if isinstance(module, nn.Conv2d)]:
        weight = convolution.weight.contiguous(memory_format=torch.channels_last)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
    if compile:
        for stage in ("encode_key", "encode_value", "segment"):
            setattr(made, stage, torch.compile(getattr(made, stage)))
    return made


def _fold_children(module: nn.Module) -> None:
    """Each normalisation that directly follows a convolution of this module goes into it: ``bn1`` into ``conv1``, and
    the second part of a short cut into its first.
    """
    children = dict(module.named_children())
    for name, child in children.items():
        if isinstance(child, nn.BatchNorm2d):
            before = "0" if isinstance(module, nn.Sequential) else name.replace("bn", "conv")
            convolution = children[before]
            assert isinstance(convolution, nn.Conv2d)
            setattr(module, before, folded(convolution, child))
            setattr(module, name, nn.Identity())


def folded(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does what the two do with stored statistics, its weights computed in float64."""
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None and variance is not None and convolution.bias is None
    scale = normalisation.weight.double() / (variance.double() + normalisation.eps).sqrt()
    weight = convolution.weight.double() * scale[:, None, None, None]
    bias = normalisation.bias.double() - mean.double() * scale
    made = copy.deepcopy(convolution)
    made.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
    made.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)
    return made
