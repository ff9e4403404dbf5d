"""Networks as they are handed over: taken out of their wrappers, and refused where none can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

_STAGES = ("config", "encode_key", "encode_value", "segment")
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRANSPARENT = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(network: Any) -> Any:
    """The network in a DataParallel, DistributedDataParallel or AveragedModel, or itself.

    A video's frames follow one another, so that those share no work among devices here. TypeError
    for anything else but an :class:`.XMem`, with the way out; ValueError for parameters that are on
    several devices or of several types.
    """
    while isinstance(network, _TRANSPARENT):
        network = network.module
    if hasattr(network, "_orig_mod"):
        raise TypeError(
            "network: wanted an XMem network, got one wrapped by torch.compile, which compiles forward alone; "
            "pass network.tuned(compile=True), made of the network before torch.compile"
        )
    if not isinstance(network, nn.Module) or not all(hasattr(network, name) for name in _STAGES):
        raise TypeError(f"network: wanted an XMem network, got {type(network).__name__}")
    _expect_one_place(network)
    return network


def _expect_one_place(network: nn.Module) -> None:
    devices = {parameter.device for parameter in network.parameters()}
    if len(devices) != 1:
        raise ValueError(f"network: wanted parameters on one device, got {_listed(devices)}; network.to(device) moves")
    if next(iter(devices)).type == "meta":
        raise ValueError("network: wanted parameters with numbers, got the meta device; load a checkpoint first")
    # A normalisation in float32 serves convolutions of any type.
    weights = [
        (module.__class__, parameter.dtype)
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
    ]
    types = {dtype for kind, dtype in weights if not (kind is nn.BatchNorm2d and dtype == torch.float32)}
    types = types or {dtype for _, dtype in weights}
    if len(types) > 1:
        raise ValueError(f"network: wanted parameters of one type, got {_listed(types)}; network.float() converts them")
    if not types <= set(_TYPES):
        raise ValueError(f"network: wanted parameters of {_listed(_TYPES)}, got {_listed(types)}")


def _listed(things: Any) -> str:
    return ", ".join(sorted(str(thing).removeprefix("torch.") for thing in things))
