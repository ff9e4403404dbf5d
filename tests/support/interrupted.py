"""Calls that an exception interrupts at a line of ours, wherever that is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


class Interruption(BaseException):
    """Raised between two lines, as KeyboardInterrupt and MemoryError can be."""


def run(call: Callable[[], Any], part: str, point: int | None = None) -> list[tuple[str, int]]:
    """Calls it and returns the lines it ran in files whose path has ``part``, in order.

    With a ``point``, Interruption is raised in place of the line of that number.
    """
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if part not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(lines) - 1 == point:
                sys.settrace(None)
                raise Interruption(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def interruptions(
    make: Callable[[], tuple[Any, Callable[[], Any]]], part: str = "/xmemk/memory/", *, again: bool = False
) -> Iterator[tuple[Any, str]]:
    """Interrupts a call at every line it runs, at the first time that it does.

    make: makes a subject and a call on it. again: also at the last time. Yields each subject after
    its interruption, and where that was.
    """
    run(make()[1], part)  # what is done once in a process is done
    lines = run(make()[1], part)
    first = {line: i for i, line in reversed(list(enumerate(lines)))}
    last = {line: i for i, line in enumerate(lines)} if again else {}
    assert len(first) > 2
    for point in sorted({*first.values(), *last.values()}):
        subject, call = make()
        try:
            run(call, part, point)
        except Interruption as interruption:
            yield subject, str(interruption)
        else:
            raise AssertionError(f"line {lines[point]} did not come again")
