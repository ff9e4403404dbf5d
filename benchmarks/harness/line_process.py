"""A process that answers in lines: its messages cannot block it, its end is a reason."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REMEMBERED = 20_000  # bytes of standard error, its end
LONGEST_REASON = 300
NO_RESULT = "its process ended without a result"


class LineProcess:
    """``command`` in ``cwd``. Use it as a context, so that it is ended for sure."""

    def __init__(self, command: Sequence[str], cwd: Path | str | None = None) -> None:
        pipe = subprocess.PIPE
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(command, text=True, cwd=cwd, stdin=pipe, stdout=pipe, stderr=self._messages)
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read_answers, daemon=True)
        self._reader.start()

    def __enter__(self) -> LineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read_answers(self) -> None:
        for line in self._process.stdout or ():
            self._answers.put(line)
        self._answers.put(None)

    def write(self, line: str) -> None:
        """A line on its standard input. Where the process has ended, :meth:`read` returns None."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def read(self, seconds: float) -> str | None:
        """The next line of its standard output; None at its end.

        Raises TimeoutError where none comes in time.
        """
        try:
            line = self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        if line is None:
            self._answers.put(None)
        return line

    def lines(self, seconds: float) -> Iterator[str]:
        """Its standard output to the end.

        Raises TimeoutError where that takes more than ``seconds`` in all.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                line = self.read(until - time.monotonic())
            except TimeoutError:
                raise TimeoutError(f"did not end within {seconds:.0f} s") from None
            if line is None:
                return
            yield line

    def end(self) -> tuple[int, str]:
        """Waits for it: its exit code, and in words how it failed; no words where it did not."""
        code = self._process.wait()
        self._messages.seek(0, 2)
        self._messages.seek(max(0, self._messages.tell() - REMEMBERED))
        return code, ending(code, self._messages.read().decode(errors="replace").splitlines())

    def kill(self) -> None:
        """Ends it, if it has not ended, and frees what it held."""
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)  # a grandchild may hold the pipe
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def ask(module: str, order: Any, seconds: float, take: Callable[[Any], None] = lambda _: None) -> tuple[Any, str]:
    """The last answer of `python -m MODULE --order JSON`, which prints answers as lines of JSON;
    and how it failed.

    The answer is None where there was none. ``take`` gets each answer as it comes.
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
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"its process was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    else:
        how = f"its process failed with {code}"
    last = "; ".join(last_words(messages))
    return (f"{how}: {last}" if last else how)[:LONGEST_REASON]


def last_words(messages: Sequence[str]) -> list[str]:
    """Of standard error: the exception without its traceback, else the last three lines."""
    lines = [line.rstrip() for line in messages if line.strip()]
    traced = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=len(lines))
    raised = next((i for i in range(traced + 1, len(lines)) if not lines[i].startswith(" ")), len(lines) - 3)
    return [line.strip() for line in lines[max(0, raised) :][:3]]
