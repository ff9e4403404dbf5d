"""Files of network parameters: read without running code from them, checked tensor by tensor.

This module knows names, shapes and numbers; :meth:`xmemk.XMem.from_checkpoint` builds the network.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import NetworkConfig

_SHOWN = 3  # names or faults that an error lists
_MARK = "key_encoder.conv1.weight"  # by it the network's parameters are recognised among others
_DEPTH = 4  # mappings within mappings that are searched
_VALUE_STEM = "value_encoder.conv1.weight"
_STEM_CHANNELS = 5  # RGB, the object's mask, the sum of the other objects' masks
_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_FOREIGN = re.compile(  # in errors of torch.load: the name of what is no parameter
    r"Unsupported (?:global|class|operand)[^\n]*?: ?(?:GLOBAL )?([\w.]+)|unsupported GLOBAL ([\w.]+)|(TorchScript)"
)
_NO_PARAMETERS = (  # how files begin that are saved in place of one with parameters
    (b"<!doctype html", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
    (b"version https://git-lfs", "a Git LFS pointer; git lfs pull fetches the file itself"),
)


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The network's parameters in a file by name, on the CPU; no code in the file is run.

    The file is a pickle of torch.save or has the safetensors format. The parameters may lie within
    other mappings ({"network": ...}, {"state_dict": ...}), and their names may have a common prefix
    (``module.``). A value encoder of 4 input channels, which sees one object at a time, gets a
    fifth channel of zero weights.

    Raises FileNotFoundError where there is no file, and ValueError, which names the file, where it
    is damaged or does not hold the parameters of one XMem network.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{file}: there is no such file")
    if not file.is_file():
        raise ValueError(f"{file}: wanted a file of parameters, got {'a folder' if file.is_dir() else 'no file'}")
    content = _content(file)
    networks = list(_networks(content))
    if not networks:
        raise ValueError(f"{file}: {_what_else(content)}")
    if len(networks) > 1:
        names = ", ".join(repr(name) for name, _ in networks[:_SHOWN])
        raise ValueError(f"{file}: wanted the parameters of one network, got {len(networks)}: {names}; save one alone")
    ((_, state),) = networks
    stem = state.get(_VALUE_STEM)
    if isinstance(stem, Tensor) and form_of(stem) is None and stem.dim() == 4 and stem.shape[1] == _STEM_CHANNELS - 1:
        state[_VALUE_STEM] = torch.cat([stem, torch.zeros_like(stem[:, :1])], 1)
    return state


def _content(file: Path) -> Any:
    """What a file holds. ValueError, which names it, for one that cannot be read."""
    with file.open("rb") as opened:
        head = opened.read(64)
    for beginning, what in _NO_PARAMETERS:
        if head.lstrip().lower().startswith(beginning):
            raise ValueError(f"{file}: not a file of parameters but {what}")
    if not head:
        raise ValueError(f"{file}: not a file of parameters: it is empty")
    load_file = _load_safetensors(file) if head[8:9] == b"{" else None  # behind the size of its header
    try:
        if load_file is not None:
            return load_file(file)
        with warnings.catch_warnings(), file.open("rb") as opened:  # of a path, torch would heed the suffix
            warnings.simplefilter("ignore")  # about files that are refused below
            return torch.load(opened, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        foreign = _FOREIGN.search(str(error))
        if foreign:
            raise ValueError(
                f"{file}: not a file of parameters but of Python objects ({foreign[foreign.lastindex or 0]}), which "
                "could run code; wanted what torch.save(network.state_dict(), path) writes"
            ) from None
        raise ValueError(f"{file}: not a file of parameters, or a damaged one") from None


def _load_safetensors(file: Path) -> Callable[[Path], dict[str, Tensor]]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{file}: reading it needs safetensors: pip install safetensors") from error
    return load_file


def _networks(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings in ``content`` with a network's parameters: where they lie, and the mapping.

    Prefixes of names are removed. What lies beside a prefix is not the network's.
    """
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    names = [key for key in content if isinstance(key, str)]
    for key in names:
        if key == _MARK or key.endswith("." + _MARK):
            prefix = key.removesuffix(_MARK)
            own = {key.removeprefix(prefix): content[key] for key in names if key.startswith(prefix)}
            yield (name + prefix).rstrip("."), own
    for key in names:
        yield from _networks(content[key], f"{name}{key}.", depth + 1)


def _what_else(content: Any) -> str:
    """What a file holds instead of a network's parameters."""
    if not isinstance(content, Mapping):
        return f"wanted parameters by name, got {type(content).__name__}"
    listed = _some([str(name) for name in content]) or "nothing"
    return f"not XMem's parameters: there is no {_MARK}, but {listed}"


def form_of(x: object) -> str | None:
    """What keeps ``x`` from being a parameter: None for a dense tensor with numbers."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    if x.is_nested:
        return "a nested tensor"
    if x.is_meta:
        return "a meta tensor, which has no numbers"
    if x.is_quantized:
        return "a quantised tensor"
    if x.layout != torch.strided:
        return f"a sparse tensor ({str(x.layout).removeprefix('torch.')})"
    return None


def config_of(state: Mapping[str, Any]) -> NetworkConfig:
    """The sizes of the network that has these parameters, read from their shapes.

    Each is read from several parameters, of which the majority counts: where one has another shape,
    :func:`check` then names that one. Raises ValueError where all of them are missing.
    """

    def size(*places: tuple[str, int]) -> int:
        dense = [(state[name], dim) for name, dim in places if name in state and form_of(state[name]) is None]
        sizes = [x.shape[dim] for x, dim in dense if x.dim() > dim]
        if not sizes:
            raise ValueError("; ".join(f"{name} is {_instead(state, name)}" for name, _ in places[:_SHOWN]))
        return max(sizes, key=sizes.count)

    def blocks(prefix: str) -> int:
        numbers = {m[1] for name in state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        return max(len(numbers), 1)

    update = "decoder.hidden_update."  # the output of its transform has three gates
    value, decoder = "value_encoder.fuser.block2.", "decoder.up_8_4.out_conv."
    return NetworkConfig(
        key_dim=size(("key_proj.key_proj.weight", 0), ("key_proj.key_proj.bias", 0), ("key_proj.e_proj.weight", 0)),
        value_dim=size((f"{value}conv2.weight", 0), (f"{value}conv2.bias", 0), (f"{value}conv1.weight", 0)),
        hidden_dim=size((f"{update}transform.weight", 0), (f"{update}transform.bias", 0)) // 3
        if any(name.startswith(update) for name in state)
        else 0,
        width=size((_MARK, 0), ("key_encoder.bn1.weight", 0), ("key_encoder.bn1.bias", 0)),
        key_blocks=(blocks("key_encoder.res2"), blocks("key_encoder.layer2"), blocks("key_encoder.layer3")),
        value_blocks=(blocks("value_encoder.layer1"), blocks("value_encoder.layer2"), blocks("value_encoder.layer3")),
        decoder_dim=size(("decoder.pred.weight", 1), (f"{decoder}conv2.weight", 0), (f"{decoder}conv2.bias", 0)),
    )


def _instead(state: Mapping[str, Any], name: str) -> str:
    """What a file has in place of a parameter from which a size is read."""
    if name not in state:
        return "missing"
    return form_of(state[name]) or f"of shape {list(state[name].shape)}"


def check(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """ValueError, which lists the first faults, unless these are exactly the expected parameters.

    Names, shapes and kinds of types are those of ``expected``. Floating parameters have one type,
    of 16, 32 or 64 bits, and their numbers are finite.
    """
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is not one of XMem's" for name in state if name not in expected]
    shared = [name for name in expected if name in state]
    floating = [state[n].dtype for n in shared if isinstance(state[n], Tensor) and state[n].is_floating_point()]
    common = max(_TYPES, key=floating.count)
    for name in shared:
        fault = _fault(name, state[name], expected[name], common)
        faults += [] if fault is None else [fault]
    if faults:
        more = len(faults) - _SHOWN
        raise ValueError("; ".join(faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""))


def _fault(name: str, x: Any, expected: Tensor, common: torch.dtype) -> str | None:
    """What is wrong with one parameter."""
    form = form_of(x)
    if form is not None:
        return f"{name} is {form}"
    if x.shape != expected.shape:
        return f"{name}: wanted shape {list(expected.shape)}, got {list(x.shape)}"
    if not expected.is_floating_point():
        is_whole = x.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
        return None if is_whole else f"{name}: wanted {expected.dtype}, got {x.dtype}"
    if x.dtype not in _TYPES:
        return f"{name}: wanted {', '.join(str(t).removeprefix('torch.') for t in _TYPES)}, got {x.dtype}"
    if x.dtype != common:
        return f"{name}: wanted {common} as most parameters, got {x.dtype}"
    unfit = x.numel() - int(torch.isfinite(x).sum())
    if unfit:
        return f"{name}: {unfit} of {x.numel()} numbers are NaN or Inf"
    if name.endswith("running_var") and bool((x < 0).any()):
        return f"{name}: a variance is below 0"
    return None


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
