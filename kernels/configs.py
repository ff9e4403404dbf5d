"""Tile sizes per architecture, from configs.json, which ``python -m xmemk.kernels.tune`` rewrites on a GPU.

They are fixed, so that a read is launched in the same way every time: a program that runs tries nothing out.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
PATH = Path(__file__).with_name("configs.json")

_assumed: int | None = None


@functools.cache
def table() -> dict[str, dict[str, dict[str, int]]]:
    """architecture, or "cpu" for tensors that are not on a GPU -> kernel -> tile sizes, warps and stages."""
    loaded: dict[str, dict[str, dict[str, int]]] = json.loads(PATH.read_text())
    return loaded


@contextlib.contextmanager
def assumed(architecture: int) -> Iterator[None]:
    """Launches are those of this architecture, wherever the tensors are; for compiling ahead of time."""
    global _assumed
    before, _assumed = _assumed, architecture
    forget()
    try:
        yield
    finally:
        _assumed = before
        forget()


def forget() -> None:
    """Makes :func:`of` read the table again."""
    _of.cache_clear()


def name(device: torch.device) -> str:
    """The table's name for a device: the newest architecture listed that is no newer than the GPU's."""
    if _assumed is not None:
        return str(_assumed)
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return str(max((a for a in ARCHITECTURES if a <= 10 * major + minor), default=ARCHITECTURES[0]))


def of(kernel: str, like: Tensor, channels: int = 64) -> dict[str, int]:
    """The configuration of a kernel on the device of ``like``, for key operands of ``channels`` (at most 128)."""
    return _of(kernel, like.device, channels > 64)


@functools.cache
def _of(kernel: str, device: torch.device, many_channels: bool) -> dict[str, int]:
    config = dict(table()[name(device)][kernel])
    if many_channels:  # twice the channels: half the keys and queries fit the same shared memory
        for size, least in (("BLOCK_N", 32), ("BLOCK_Q", 64)):
            if size in config:
                config[size] = max(least, config[size] // 2)
    return config


def power_of_2_from(n: int) -> int:
    """The smallest power of two that is at least n; Triton's own function for it takes several times as long."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def launch(config: dict[str, int]) -> dict[str, int]:
    """The options of a launch among a configuration's numbers."""
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}
