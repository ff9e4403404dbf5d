"""A memory in a file: safetensors with the tokens held, and JSON with everything else.

This module writes files completely or not at all, and refuses by name what is no such file.
:mod:`.state` says what is in them. A file is written beside its place and then renamed. Whoever
writes has it locked, so the next save to that place can tell what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..reference.config import MemoryConfig
from .checks import FrameLayout, expect_finite
from .graph import Captures
from .sensory import SensoryMemory
from .state import Groups, State, restore, state_of

FORMAT = "xmemk.Memory"
VERSION = 1

_TYPES = {  # as safetensors names them
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int8: "I8",
}


def write(
    path: str | os.PathLike[str],
    config: MemoryConfig,
    layout: FrameLayout | None,
    groups: Groups | None,
    sensory: SensoryMemory,
) -> None:
    """Writes a memory, first to a temporary file beside ``path``.

    Where that fails, an old file stays. A symbolic link at ``path`` is replaced, not followed.
    """
    _safetensors()
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: wanted the name of a file, got a folder")
    tensors: dict[str, Tensor] = {}
    state = state_of(config, layout, groups, sensory, tensors)
    metadata = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)}
    _collect(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            _lock(file)
            _write_tensors(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"could not be written: {error.strerror or error}", str(path)) from error
        raise
    if os.name == "posix":  # puts the new name on the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_tensors(file: BinaryIO, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The safetensors format: the header's size, the header in JSON, all numbers one by one.

    The package would write to a file of its own choice, which nobody has locked.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, x in tensors.items():
        start, end = end, end + x.nbytes
        header[name] = {"dtype": _TYPES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for x in tensors.values():
        file.write(x.reshape(-1).view(torch.uint8).numpy().data)


def _collect(path: Path) -> None:
    """Removes the temporary files of saves to ``path`` that were killed."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for left in [Path(entry) for entry in entries if pattern.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), open(left, "rb", opener=_no_link) as file:
                if _lock(file):
                    left.unlink()


def _no_link(path: str, flags: int) -> int:
    """Opens a file; OSError for a symbolic link. Waits for no pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _lock(file: BinaryIO) -> bool:
    """Locks an open file until it is closed; False where another has it, or nobody can have it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ModuleNotFoundError, OSError):
        return False
    return True


def read(
    path: str | os.PathLike[str],
    device: torch.device | str | None,
    backend: str,
    graphs: Captures | None = None,
    *,
    finite: bool = True,
) -> State:
    """The parts of a memory, on ``device`` or, for None, on the device that it was on.

    finite: whether its numbers are searched for NaN and Inf. ValueError, naming the file, where it
    is cut off, is no memory, is of a newer version, or contradicts itself.
    """
    safetensors = _safetensors()
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path}: wanted a file that Memory.save wrote, got a folder, pipe or device")
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
            for name in file.keys() if finite else ():
                x = file.get_tensor(name)
                expect_finite(name, x.float() if x.dtype.itemsize == 1 else x)
            return restore(json.loads(metadata["state"]), file, device, backend, graphs)
    except Exception as error:  # torch, json and safetensors raise many for what contradicts itself
        expected = f"{path}: wanted a whole file that Memory.save wrote, version {VERSION}"
        raise ValueError(f"{expected}, got: {error}") from error


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Memory.save and Memory.load need safetensors: pip install 'xmemk[memory]', or safetensors itself"
        ) from error
    return safetensors
