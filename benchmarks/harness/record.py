"""The line of a result file: when and where it was measured, which commit, which command; and how a
run goes on in a fresh process, after a peer has made the GPU unusable for this one.

After an illegal memory access every later call to CUDA fails, until the process ends. So the
process is replaced (exec) by a new one with the same command line, which reads from a file how far
the run has come. Nothing of the old process is left on the GPU then, and whoever has started it, or
has set it a limit, still has the same process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from xmemk.benchmarks.report.result_files import append
from xmemk.benchmarks.report.schema import ResultLine

import xmemk
from xmemk.measure import load
from xmemk.measure.machine import describe

ROOT = Path(__file__).resolve().parents[2]
OPTION = "--go-on"
MOST_RESTARTS = 3  # of a run


def new_run(kind: str, script: str, arguments: Sequence[str], machine: dict[str, str] | None = None) -> ResultLine:
    """The line of this process, without results. ``script``: relative to benchmarks/."""
    date = time.strftime("%Y-%m-%d %H:%M")
    return ResultLine(
        kind, date, revision(), machine or {**describe(), "load": str(load.look())}, command=command(script, arguments)
    )


@contextlib.contextmanager
def recorded(kind: str, path: Path | None) -> Iterator[list[Any]]:
    """A list for the results of a study, "scaling", "length" or "claims", which become a line of
    ``path``."""
    run = new_run(kind, f"studies/{kind}.py", sys.argv[1:])
    with kept(run, path):
        yield run.results


@contextlib.contextmanager
def kept(run: ResultLine, path: Path | None) -> Iterator[None]:
    """Appends the run to a file however it ends: by Ctrl-C, by SIGTERM or by an error, which the
    line then names, too."""
    before = None
    with contextlib.suppress(ValueError):  # only the main thread can set signals
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    except BaseException as stopped:
        run.stopped = type(stopped).__name__
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if run.results:
            append(run, path)


def command(script: str, arguments: Sequence[str]) -> str:
    """The line for a shell that runs a script of benchmarks/ again.

    It has no paths of this machine: those inside the repository become relative to it, of others
    only the name is left.
    """
    return shlex.join(["python", f"benchmarks/{script}", *map(_of_any_machine, arguments)])


def _of_any_machine(argument: str) -> str:
    if argument.startswith("--") and "=" in argument:
        name, value = argument.split("=", 1)
        return f"{name}={_of_any_machine(value)}"
    path = Path(argument)
    if not path.is_absolute() and ".." not in path.parts:
        return argument
    absolute = path.resolve()
    return str(absolute.relative_to(ROOT)) if absolute.is_relative_to(ROOT) and absolute != ROOT else path.name


def revision() -> str:
    """Version and commit, marked where the files differ; the version alone outside a checkout."""
    if not (ROOT / ".git").exists():
        return xmemk.__version__
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return f"{xmemk.__version__} {done.stdout.strip()}".strip()


@dataclass
class RunState:
    """How far a run has come.

    green: as op_tests.check has it. until: when the time given is over, of time.time(). at: the
    sweep and the case to begin with.
    """

    run: ResultLine
    green: dict[str, bool | str]
    until: float | None
    at: tuple[int, int] = (0, 0)


def replace_this_process(state: RunState) -> NoReturn:
    """By the same command line with ``state``."""
    with tempfile.NamedTemporaryFile(prefix="xmemk-run-", delete=False) as file:
        pickle.dump(state, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # an inherited file of the GPU would keep its memory
    words = sys.orig_argv[1:]
    at = words.index(OPTION) if OPTION in words else len(words)  # of the state that this process went on from
    os.execv(sys.executable, [sys.executable, *words[:at], *words[at + 2 :], OPTION, file.name])


def take_up(path: Path) -> RunState:
    """The state in a file, which is removed."""
    state: RunState = pickle.loads(path.read_bytes())
    path.unlink()
    return state
