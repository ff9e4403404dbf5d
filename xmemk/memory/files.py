"""A memory in a file: safetensors with the tokens held, and JSON with everything else.

This module writes files completely or not at all, and refuses by name what is no such file.
:mod:`.state` says what is in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reference.config import MemoryConfig
from .checks import FrameLayout
from .graph import Captures
from .sensory import SensoryMemory
from .state import Groups, State, restore, state_of

FORMAT = "xmemk.Memory"
VERSION = 1

# Errors of torch and json for a file that contradicts itself, or that names a device which is not
# here.
CONTRADICTIONS = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError, AssertionError)


def write(
    path: str | os.PathLike[str],
    config: MemoryConfig,
    layout: FrameLayout | None,
    groups: Groups | None,
    sensory: SensoryMemory,
) -> None:
    """Writes a memory, first to a temporary file beside ``path``.

    Where that fails, an old file stays.
    """
    safetensors = safetensors_package()
    tensors: dict[str, Tensor] = {}
    state = state_of(config, layout, groups, sensory, tensors)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    metadata = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)}
    try:
        try:
            with open(temporary, "xb"):
                mode = temporary.stat().st_mode
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # safetensors makes files that only their owner may read
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: could not be written: {error}") from error
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":  # puts the new name on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(
    path: str | os.PathLike[str],
    device: torch.device | str | None,
    backend: str,
    graphs: Captures | None = None,
) -> State:
    """The parts of a memory, on ``device`` or, for None, on the device that it was on.

    ValueError, naming the file, where it is cut off, is no memory, is of a newer version, or
    contradicts itself.
    """
    safetensors = safetensors_package()
    with open(path, "rb"):  # OSError for a file that is missing or may not be read
        pass
    device = None if device is None else torch.empty(0, device=device).device
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("another safetensors file")
            if metadata.get("version") != str(VERSION):
                raise ValueError(f"version {metadata.get('version')} of the format")
            return restore(json.loads(metadata["state"]), file, device, backend, graphs)
    except (safetensors.SafetensorError, *CONTRADICTIONS) as error:
        expected = f"{path}: wanted a whole file that Memory.save wrote, version {VERSION}"
        raise ValueError(f"{expected}, got: {error}") from error


def safetensors_package() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Memory.save and Memory.load need safetensors: pip install 'xmemk[memory]', or safetensors itself"
        ) from error
    return safetensors
