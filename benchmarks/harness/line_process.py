"""A process that answers in lines: its messages cannot block it, its end is a reason."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REMEMBERED = 20_000  # bytes of standard error, its end
LONGEST_REASON = 300
NO_RESULT = "its process ended without a result"


class LineProcess:
    """``command`` in ``cwd``, in a session of its own. As a context it is ended for sure."""

    def __init__(self, command: Sequence[str], cwd: Path | str | None = None) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._messages}
        self._process = subprocess.Popen(command, text=True, cwd=cwd, start_new_session=True, **pipes)
        self._late = False

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def write(self, line: str) -> None:
        """A line on its standard input. Where the process has ended, :meth:`read` returns None."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def read(self, seconds: float) -> str | None:
        """The next line of its output; None at its end. Raises TimeoutError and ends it if late."""
        return next(self._lines(seconds, f"no answer within {seconds:.0f} s"), None)

    def lines(self, seconds: float) -> Iterator[str]:
        """Its output to the end. After so many seconds, ends it, and raises TimeoutError."""
        return self._lines(seconds, f"did not end within {seconds:.0f} s")

    def _lines(self, seconds: float, how: str) -> Iterator[str]:
        assert self._process.stdout is not None
        timer = threading.Timer(max(0.0, seconds), self._kill_late)
        timer.start()
        try:
            yield from iter(self._process.stdout.readline, "")
        finally:
            timer.cancel()
        if self._late:
            raise TimeoutError(how)

    def _kill_late(self) -> None:
        self._late = True
        self._kill_all()

    def _kill_all(self) -> None:
        """With the processes that it has started, which may hold its output."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> tuple[int, str]:
        """Waits for it: its exit code, and in words how it failed; no words where it did not."""
        code = self._process.wait()
        size = self._messages.seek(0, os.SEEK_END)
        self._messages.seek(max(0, size - REMEMBERED))
        return code, ending(code, self._messages.read().decode(errors="replace").splitlines())

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        self._kill_all()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def ask(module: str, order: Any, seconds: float, take: Callable[[Any], None] = lambda _: None) -> tuple[Any, str]:
    """The last answer of `python -m MODULE --order JSON`, and how it failed, or "".

    The module prints its answers as lines of JSON; ``take`` gets each as it comes. None: no answer.
    """
    answer: Any = None
    with LineProcess([sys.executable, "-m", module, "--order", json.dumps(order)]) as process:
        try:
            for line in process.lines(seconds):
                with contextlib.suppress(ValueError):
                    answer = json.loads(line)
                    take(answer)
        except TimeoutError as late:
            return answer, f"it {late}"
        return answer, process.end()[1] or ("" if answer else NO_RESULT)


def ending(code: int, messages: Sequence[str]) -> str:
    """How a process ended, by its exit code and the lines of its standard error; "" for 0."""
    if code == 0:
        return ""
    how = f"its process failed with {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"its process was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    return ": ".join([how, *filter(None, ["; ".join(last_words(messages))])])[:LONGEST_REASON]


def last_words(messages: Sequence[str]) -> list[str]:
    """Of standard error: the exception without its traceback, else the last three lines."""
    lines = [line.rstrip() for line in messages if line.strip()]
    traced = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=len(lines))
    raised = next((i for i in range(traced + 1, len(lines)) if not lines[i].startswith(" ")), len(lines) - 3)
    return [line.strip() for line in lines[max(0, raised) :][:3]]
