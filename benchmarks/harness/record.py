"""One line of a result file: what was measured, when, where, at which commit, by which command."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from xmemk.benchmarks.run import revision

from xmemk.demo.machine import describe


def line(kind: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The line for results of this process, kind being "scaling", "length" or "claims"."""
    script = Path(sys.argv[0]).name
    return {
        "kind": kind,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "commit": revision(),
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "machine": describe(),
        "results": results,
    }


def save(made: dict[str, Any], path: Path | None) -> None:
    """Appends the line to a file; None: nowhere."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(made) + "\n")
