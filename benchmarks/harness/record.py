"""The line of a result file: when and where it was measured, which commit, which command."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xmemk.benchmarks.report.result_files import append
from xmemk.benchmarks.report.schema import Run

import xmemk
from xmemk.measure.machine import describe

ROOT = Path(__file__).resolve().parents[2]


def new_run(kind: str, script: str, arguments: Sequence[str], machine: dict[str, str] | None = None) -> Run:
    """The line of this process, without results. ``script``: relative to benchmarks/."""
    date = time.strftime("%Y-%m-%d %H:%M")
    return Run(kind, date, revision(), machine or describe(), command=command(script, arguments))


@contextlib.contextmanager
def recorded(kind: str, path: Path | None) -> Iterator[list[Any]]:
    """A list for the results of a study, "scaling", "length" or "claims", which become a line of
    ``path``.

    The line is written however the study ends: by Ctrl-C, by SIGTERM or by an error, which the line
    then names, too.
    """
    run = new_run(kind, f"studies/{kind}.py", sys.argv[1:])
    before = None
    with contextlib.suppress(ValueError):  # only the main thread can set signals
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield run.results
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
