"""Progress on stderr: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from .terminal import console_for

FIRST, EVERY = 2.0, 10.0  # seconds until the first line where there is no terminal, and between two
_BAR = 20  # columns


class Progress:
    """A context manager that shows how far a stage of the work is.

    >>> with Progress("reading") as progress:
    ...     progress.update(3, 10, "7 MB")
    """

    def __init__(self, stage: str, console: Console | None = None) -> None:
        self._console = console or console_for(stderr=True)
        self._live = Live(self, console=self._console, transient=True, refresh_per_second=8)
        self.begin(stage)

    def begin(self, stage: str, *, blocks: bool = False) -> None:
        """Goes to another stage. blocks: one that does not call :meth:`update`."""
        self._stage, self._note = stage, ""
        self._done = 0.0
        self._total: float | None = None
        self._started = time.monotonic()
        self._first: float | None = None  # what was done before this stage began
        self._printed = self._started + FIRST - EVERY
        if blocks and not self._console.is_terminal:
            self._console.print(f"{stage} ...", markup=False)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Says how much is done, of how much if that is known."""
        self._first = done if self._first is None else self._first
        self._done, self._total, self._note = done, total, note
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed >= EVERY:
            self._printed = now
            self._console.print(self.line(10_000, bar=False), markup=False)

    def line(self, width: int, *, bar: bool = True) -> str:
        """The line of progress: as many of its parts as fit, whole, the most important first."""
        parts = {"stage": self._stage}
        if self._first is not None:
            parts["count"] = f"{self._done:,.0f}" + ("" if self._total is None else f"/{self._total:,.0f}")
        parts["note"], parts["left"] = self._note, self._left()
        if bar and self._total:
            filled = round(_BAR * min(1.0, self._done / self._total))
            parts["bar"] = f"[{'=' * filled}{' ' * (_BAR - filled)}]"
        shown: list[str] = []
        for name in ("stage", "count", "left", "bar", "note"):
            if parts.get(name) and sum(len(parts[n]) + 1 for n in (*shown, name)) <= width:
                shown.append(name)
        return " ".join(parts[name] for name in ("stage", "bar", "count", "note", "left") if name in shown)

    def _left(self) -> str:
        if self._first is None or self._total is None or self._done <= self._first:
            return ""
        elapsed = time.monotonic() - self._started
        seconds = round(elapsed / (self._done - self._first) * (self._total - self._done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.line(options.max_width), no_wrap=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
