"""How much more memory a piece of work took at its peak than there was in use when it began."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import TracebackType

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Peak:
    """A context manager; afterwards ``bytes`` is the peak above the start and ``highest`` the peak itself, None where
    they cannot be measured.

    On a GPU what PyTorch allocated; on the CPU the process's resident memory, of which Linux keeps the high-water mark.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes: int | None = None
        self.highest: int | None = None
        self._device = device
        self._start: int | None = None

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
            return self
        if not _CLEAR.exists():
            return self
        try:
            give_back_free_memory()
            _CLEAR.write_text("5")  # sets the high-water mark back to what is resident now
            self._start = _resident("VmRSS")
        except OSError:
            self._start = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._start is None:
            return
        if self._device.type == "cuda":
            self.highest = torch.cuda.max_memory_allocated(self._device)
        else:
            self.highest = _resident("VmHWM")
        self.bytes = max(0, self.highest - self._start)


def resident_bytes(device: torch.device) -> int | None:
    """In use now: what PyTorch allocated on a GPU, or the process's resident memory; None where that is not told."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return _resident("VmRSS")
    except OSError:
        return None


def give_back_free_memory() -> None:
    """What was freed before and is kept for reuse would hide what is used again. Only glibc needs to be told."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status does not tell {name}")
    return int(found[1]) * 1024
