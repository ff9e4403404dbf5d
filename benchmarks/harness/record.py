"""One line of a result file: what was measured, when, where, at which commit, by which command."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xmemk
from xmemk.measure.machine import describe

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def kept(kind: str, path: Path | None) -> Iterator[list[dict[str, Any]]]:
    """A list for the results of this process, kind being "scaling", "length" or "claims", which become a line of
    ``path`` however it ends: by Ctrl-C, by SIGTERM or by an error, which the line then names, too. None: nowhere.
    """
    made = line(kind, [])
    before = None
    with contextlib.suppress(ValueError):  # signals are the main thread's
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield made["results"]
    except BaseException as stopped:
        made["stopped"] = type(stopped).__name__
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if made["results"]:
            save(made, path)


def line(kind: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The line for results of this process."""
    return {
        "kind": kind,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": revision(),
        "command": command(Path(sys.argv[0]).name, sys.argv[1:]),
        "machine": describe(),
        "results": results,
    }


def save(made: dict[str, Any], path: Path | None) -> None:
    """Appends the line to a file; None: nowhere."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(made) + "\n")


def command(script: str, arguments: Sequence[str]) -> str:
    """The line for a shell that runs a script of this folder so again. Paths of this machine are not told: inside the
    repository they are relative to it, of others only the name is left.
    """
    return shlex.join(["python", f"benchmarks/{script}", *map(_of_any_machine, arguments)])


def _of_any_machine(argument: str) -> str:
    if argument.startswith("--") and "=" in argument:
        name, value = argument.split("=", 1)
        return f"{name}={_of_any_machine(value)}"
    path = Path(argument)
    if not path.is_absolute() and ".." not in path.parts:
        return argument
    found = path.resolve()
    return str(found.relative_to(ROOT)) if found.is_relative_to(ROOT) and found != ROOT else path.name


def revision() -> str:
    """Version and commit, with a mark where the files differ from it; the version alone outside a checkout."""
    if not (ROOT / ".git").exists():
        return xmemk.__version__
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return f"{xmemk.__version__} {done.stdout.strip()}".strip()
