"""A run that goes on in a fresh process, after a peer has made the GPU unusable for this one.

After an illegal memory access every later call to CUDA fails, until the process ends. So the
process is replaced (exec) by a new one with the same command line, which reads from a file how far
the run has come. Nothing of the old process is left on the GPU then, and whoever has started it, or
has set it a limit, still has the same process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from xmemk.benchmarks.report.schema import Run

OPTION = "--go-on"
MOST_RESTARTS = 3  # of a run


@dataclass
class RunState:
    """How far a run has come.

    green: as op_tests.check has it. seconds: what is left of the time given; written: when that
    was, in seconds since the epoch. at: pass, sweep and case to begin with.
    """

    run: Run
    green: dict[str, bool | str]
    seconds: float | None
    written: float
    at: tuple[int, int, int] = (0, 0, 0)

    @property
    def seconds_left(self) -> float | None:
        return None if self.seconds is None else self.seconds - max(0.0, time.time() - self.written)


class RestartNeeded(Exception):
    """A fresh process has to measure what is left of the run."""

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self.state = state


def replace_this_process(state: RunState) -> NoReturn:
    """By the same command line with ``state``."""
    handle, name = tempfile.mkstemp(prefix="xmemk-run-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump({**vars(state), "run": state.run.to_json()}, file)
    sys.stdout.flush()
    sys.stderr.flush()
    for opened in map(int, os.listdir("/dev/fd")):  # an inherited file of the GPU would keep its memory
        with contextlib.suppress(OSError):
            os.set_inheritable(opened, opened <= 2)
    os.execv(sys.executable, [sys.executable, *without_state(sys.orig_argv[1:]), OPTION, name])


def without_state(arguments: Sequence[str]) -> list[str]:
    """A command line without the option and the file that this process went on from."""
    if OPTION not in arguments:
        return list(arguments)
    at = list(arguments).index(OPTION)
    return [*arguments[:at], *arguments[at + 2 :]]


def take_up(path: Path) -> RunState:
    """The state in a file, which is removed."""
    stored = json.loads(path.read_text())
    path.unlink()
    return RunState(**stored | {"run": Run.from_json(stored["run"]), "at": tuple(stored["at"])})
