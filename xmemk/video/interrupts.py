"""Delaying Ctrl-C until the end of a frame."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """A context manager that delays Ctrl-C inside its ``delayed()`` blocks.

    The first Ctrl-C inside such a block is raised when the block ends, a second one at once. In a
    thread other than the main one, which receives no signals, it does nothing.
    """

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._delaying = self._pending = False

    def __enter__(self) -> Interrupts:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    @contextlib.contextmanager
    def delayed(self) -> Iterator[None]:
        """A block that the first Ctrl-C does not interrupt."""
        self._delaying, self._pending = True, False
        try:
            yield
        finally:
            self._delaying = False
        if self._pending and self._handler is not None:
            self._handler(signal.SIGINT, None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._delaying and not self._pending:
            self._pending = True
        elif self._handler is not None:
            self._handler(number, frame)
