"""Items of an iterator fetched by a thread before they are needed, a bounded number at any time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

AHEAD = 4  # items fetched ahead of the one in use

T = TypeVar("T")


class _End(Generic[T]):
    """Marks the end of the items in the queue, with the error that ended them if there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(items: Iterator[T], count: int, stop: Callable[[], None] = lambda: None) -> Iterator[T]:
    """The same items, of which a thread fetches up to ``count`` before they are needed.

    The thread ends with the iteration. ``stop`` is called then, and ends what the thread may be
    waiting for. An error of ``items`` is raised where the iteration reaches it.
    """
    waiting: queue.Queue[T | _End[T]] = queue.Queue(max(count, 1))
    stopped = threading.Event()

    def offer(item: T | _End[T]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
        except BaseException as error:  # raised again where the iteration reaches it
            offer(_End(error))
        else:
            offer(_End(None))
        finally:
            close: Callable[[], None] | None = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=fetch, name="xmemk-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        stop()
        thread.join()
