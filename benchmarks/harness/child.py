"""A process of ours that answers in lines: what it says on the side cannot block it, and how it ended is a reason."""

from __future__ import annotations

import collections
import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

REMEMBERED = 200  # lines of standard error
LONGEST_REASON = 300


class Child:
    """Both of its outputs are read by threads. ``command`` runs in ``cwd``; use it as a context to end it for sure."""

    def __init__(self, command: Sequence[str], cwd: Path | str | None = None) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, text=True, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe)
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: collections.deque[str] = collections.deque(maxlen=REMEMBERED)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_answers, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._said.extend, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read_answers(self, lines: IO[str]) -> None:
        for line in lines:
            self._answers.put(line)
        self._answers.put(None)

    def write(self, line: str) -> None:
        """A line on its standard input. That it is not there any more, :meth:`read` will tell."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def read(self, seconds: float) -> str | None:
        """The next line of its standard output; None at its end. Raises TimeoutError where none comes in time."""
        try:
            line = self._answers.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        if line is None:
            self._answers.put(None)
        return line

    def lines(self, seconds: float) -> Iterator[str]:
        """Its standard output to the end. Raises TimeoutError where that is not reached after ``seconds`` in all."""
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
        for reader in self._readers:
            reader.join(timeout=5)  # a grandchild may hold the pipe
        return code, ending(code, list(self._said))

    def kill(self) -> None:
        """Ends it, if it has not ended, and frees what it held."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=5)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def ending(code: int, said: Sequence[str]) -> str:
    """How a process ended, by its exit code and the lines of its standard error; "" for 0."""
    if code == 0:
        return ""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"its process was killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")
    else:
        how = f"its process failed with {code}"
    last = "; ".join(last_words(said))
    return (f"{how}: {last}" if last else how)[:LONGEST_REASON]


def last_words(said: Sequence[str]) -> list[str]:
    """Of standard error: the exception without its traceback, else the last three lines."""
    lines = [line.rstrip() for line in said if line.strip()]
    traced = max((i for i, line in enumerate(lines) if line.startswith("Traceback (")), default=None)
    if traced is not None:
        raised = next((i for i in range(traced + 1, len(lines)) if not lines[i].startswith(" ")), None)
        if raised is not None:
            return [line.strip() for line in lines[raised : raised + 3]]
    return [line.strip() for line in lines[-3:]]
