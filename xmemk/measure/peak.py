"""The peak of memory in use during a piece of work, above what was in use when it began."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import TracebackType

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Peak:
    """A context manager that measures the peak of memory in its block.

    Afterwards ``highest`` is the peak in bytes, and ``bytes`` the peak less what was in use at the
    start. Both are None where they cannot be measured. On a GPU they count what PyTorch allocated,
    on the CPU the resident memory of the process, whose high-water mark Linux keeps.
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
            _CLEAR.write_text("5")  # resets the high-water mark to what is resident now
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
    """Bytes in use now: PyTorch's allocations on a GPU, the process's resident memory on a CPU.

    None where the system does not report resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return _resident("VmRSS")
    except OSError:
        return None


def give_back_free_memory() -> None:
    """Returns freed memory to the system, which otherwise hides the reuse of it from a peak.

    Only glibc keeps such memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    line = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if line is None:
        raise OSError(f"/proc/self/status does not report {name}")
    return int(line[1]) * 1024
