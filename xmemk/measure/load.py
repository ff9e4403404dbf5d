"""Whether other work on this machine would disturb a measurement."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import NamedTuple

QUIET_SHARE = 0.9  # of the cores' time; a quiet machine gives all but a few percent
QUIET_LOAD = 0.5  # runnable processes a core, in the last minute
_BLOCK = bytes(2**20)  # hashing one takes about a millisecond, and does not hold the interpreter's lock


class Load(NamedTuple):
    """average: runnable processes in the last minute, None where the system does not tell.

    share: of the cores' time, what this process got when it asked for all of it.
    """

    average: float | None
    cores: int
    share: float

    @property
    def disturbs(self) -> bool:
        busy = self.average is not None and self.average > QUIET_LOAD * (os.cpu_count() or 1)
        return busy or self.share < QUIET_SHARE

    def __str__(self) -> str:
        average = "" if self.average is None else f", load {self.average:.1f} in the last minute"
        return f"{self.cores} cores{average}, of whose time {100 * self.share:.0f} % was free"


def look(seconds: float = 0.3) -> Load:
    """The load now: what the system reports, and a probe that keeps every core busy so long."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used = [0.0] * cores
    start = time.perf_counter()

    def work(core: int) -> None:
        began = time.thread_time()
        while time.perf_counter() - start < seconds:
            hashlib.sha256(_BLOCK)
        used[core] = time.thread_time() - began

    threads = [threading.Thread(target=work, args=(core,)) for core in range(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(average, cores, min(1.0, sum(used) / (cores * (time.perf_counter() - start))))
