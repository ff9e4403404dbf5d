"""Ctrl-C that waits for the end of a frame."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """Entered in the main thread, it keeps the first Ctrl-C within ``held`` until that ends; a second comes at once."""

    def __init__(self) -> None:
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._holding = self._waiting = False

    def __enter__(self) -> Interrupts:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._holding, self._waiting = True, False
        try:
            yield
        finally:
            self._holding = False
        if self._waiting and self._handler is not None:
            self._handler(signal.SIGINT, None)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._holding and not self._waiting:
            self._waiting = True
        elif self._handler is not None:
            self._handler(number, frame)
