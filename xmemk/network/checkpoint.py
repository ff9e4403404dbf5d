"""Files of network parameters: read without running code from them, checked by name and shape.

This module knows names and shapes alone; :meth:`xmemk.XMem.from_checkpoint` builds the network.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .config import NetworkConfig

_SHOWN = 3  # names that an error lists
_VALUE_STEM = "value_encoder.conv1.weight"
_STEM_CHANNELS = 5  # RGB, the object's mask, the sum of the other objects' masks


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The parameters of a file by name, on the CPU, loaded with ``weights_only``.

    A value encoder of 4 input channels, which sees one object at a time, gets a fifth channel of
    zero weights. Raises FileNotFoundError where there is no file, and ValueError, which names the
    file, where it is damaged or holds anything but tensors by name.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about files that are refused below
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        foreign = re.search(r"Unsupported (?:global|class|operand)[^\n]*?: ?(?:GLOBAL )?([\w.]+)", str(error))
        if foreign:
            raise ValueError(
                f"{file}: not a file of parameters but of Python objects ({foreign[1]}), which could run code; wanted "
                "what torch.save(network.state_dict(), path) writes"
            ) from None
        raise ValueError(f"{file}: not a file of parameters, or a damaged one") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        content = type(state).__name__
        if isinstance(state, Mapping) and state:
            name, x = next((name, x) for name, x in state.items() if not isinstance(x, Tensor))
            content = f"{name!r}: {type(x).__name__}"
        raise ValueError(f"{file}: wanted parameters by name, got {content}")
    state = {str(name): x for name, x in state.items()}
    stem = state.get(_VALUE_STEM)
    if stem is not None and stem.dim() == 4 and stem.shape[1] == _STEM_CHANNELS - 1:
        state[_VALUE_STEM] = torch.cat([stem, torch.zeros_like(stem[:, :1])], 1)
    return state


def config_of(state: Mapping[str, Tensor]) -> NetworkConfig:
    """The sizes of the network that has these parameters, read from their shapes.

    Raises ValueError where a parameter is missing from whose shape a size is read.
    """

    def size(name: str, dim: int = 0) -> int:
        if name not in state or state[name].dim() <= dim:
            raise ValueError(f"not XMem's parameters: there is no {name}, but {_some(state)}")
        return state[name].shape[dim]

    def blocks(prefix: str) -> int:
        numbers = {int(m[1]) for name in state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        return max(len(numbers), 1)

    hidden = "decoder.hidden_update.transform.weight"  # its output has three gates
    return NetworkConfig(
        key_dim=size("key_proj.key_proj.weight"),
        value_dim=size("value_encoder.fuser.block2.conv2.weight"),
        hidden_dim=size(hidden) // 3 if hidden in state else 0,
        width=size("key_encoder.conv1.weight"),
        key_blocks=(blocks("key_encoder.res2"), blocks("key_encoder.layer2"), blocks("key_encoder.layer3")),
        value_blocks=(blocks("value_encoder.layer1"), blocks("value_encoder.layer2"), blocks("value_encoder.layer3")),
        decoder_dim=size("decoder.pred.weight", 1),
    )


def check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """ValueError where names are missing or unknown, or a shape or kind of type differs."""
    missing = [name for name in expected if name not in state]
    if missing:
        raise ValueError(f"{len(missing)} parameters are missing: {_some(missing)}")
    unknown = [name for name in state if name not in expected]
    if unknown:
        raise ValueError(f"{len(unknown)} parameters are not XMem's: {_some(unknown)}")
    for name, x in expected.items():
        if state[name].shape != x.shape:
            raise ValueError(f"{name}: wanted shape {list(x.shape)}, got {list(state[name].shape)}")
        if state[name].is_floating_point() != x.is_floating_point():
            raise ValueError(f"{name}: wanted {x.dtype}, got {state[name].dtype}")


def _some(names: Mapping[str, Tensor] | list[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
