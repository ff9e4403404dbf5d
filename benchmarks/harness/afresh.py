"""A run that goes on in a fresh process, after a peer has taken the device from this one.

After an illegal memory access every later call to CUDA fails, until the process ends. So the process is replaced by a
new one with the same command line, which finds in a file how far the run has come. Nothing of the old one is left on
the GPU then, and whoever has started it, or has set it a limit, still has the same process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

OPTION = "--go-on"
MOST = 3  # fresh processes of a run


class Afresh(Exception):
    """What is left of the run is to be measured by a fresh process."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state


@dataclass
class State:
    """How far a run has come.

    run: as it is recorded. green: as tested.check has it. seconds: what is left of the time given; written: when that
    was, in seconds since the epoch. at: pass, sweep and case to begin with; entries: what the cases of that pass have
    found.
    """

    run: dict[str, Any]
    green: dict[str, bool | str]
    seconds: float | None
    written: float
    at: tuple[int, int, int] = (0, 0, 0)
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds_left(self) -> float | None:
        return None if self.seconds is None else self.seconds - max(0.0, time.time() - self.written)


def replace_this_process(state: State) -> NoReturn:
    """By the same command line with ``state``."""
    handle, name = tempfile.mkstemp(prefix="xmemk-run-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(state), file)
    sys.stdout.flush()
    sys.stderr.flush()
    for opened in map(int, os.listdir("/dev/fd")):  # a GPU's memory is taken for as long as its file is open
        with contextlib.suppress(OSError):
            os.set_inheritable(opened, opened <= 2)
    os.execv(sys.executable, [sys.executable, *again(sys.orig_argv[1:]), OPTION, name])


def again(arguments: Sequence[str]) -> list[str]:
    """A command line without the option and the file that this process went on from."""
    if OPTION not in arguments:
        return list(arguments)
    at = list(arguments).index(OPTION)
    return [*arguments[:at], *arguments[at + 2 :]]


def take_up(path: Path) -> State:
    """The state in a file, which is removed."""
    told = json.loads(path.read_text())
    path.unlink()
    return State(**told | {"at": tuple(told["at"])})
