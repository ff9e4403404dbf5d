"""Times of calls: on a GPU the device's, by replays of a CUDA graph between events, and the host's
to issue a call.

Warm is the mean of a chain of replays, cold one replay after the second-level cache was
overwritten. On the CPU there is warm alone: the clock's time of a chain of calls, the median of
REPEATS chains. The fastest chain would favour short calls, which find a quiet moment more easily
than long ones. A round goes through all calls, so that other work on the machine falls on all of
them. Their order changes, so that no call always comes after the same one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

CHAIN_SECONDS = {"cpu": 3e-2, "cuda": 2e-3}
REPEATS = {"cpu": 3, "cuda": 1}
NOT_REPEATED_FROM = 0.5  # seconds of a call
LONGEST_CHAIN = {"cpu": 2000, "cuda": 50}
UNTIMED_BELOW = 5e-2  # a call shorter than this is made once, untimed, before each chain


@dataclass
class TimedCall:
    """A call that is being timed; times in seconds."""

    run: Callable[[], object]
    note: str = ""
    chain: int = 1
    repeats: int = 1
    untimed: bool = False
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    host: float | None = None
    spent: float = 0.0  # in all rounds, by the clock


class RoundTimer:
    """device: "cpu" or "cuda", with an index or without."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.kind = self.device.type
        self.cuda = self.kind == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def prepare(self, call: Callable[[], object], first: float | None = None) -> TimedCall:
        """Warms up, measures the host, and captures a graph; a call that cannot be captured is
        timed as it is.

        ``first`` is what a call took before, in seconds: a long one is not called again to be
        warmed up.
        """
        timed = TimedCall(call)
        if self.cuda:
            for _ in range(3):
                call()
            timed.host = statistics.median(self._issue(call) for _ in range(10))
            try:
                timed.run = _captured(call).replay
            except RuntimeError as error:
                torch.cuda.synchronize()
                timed.note = f"no graph: {first_line(error)}"
        one = first
        if one is None or one < 0.1:
            one = min(self._between(timed.run, 1) for _ in range(3))
        timed.chain = chain_length(self.kind, one)
        timed.repeats = REPEATS[self.kind] if one < NOT_REPEATED_FROM else 1
        timed.untimed = one < UNTIMED_BELOW
        return timed

    def measure(self, timed: TimedCall) -> None:
        """One round of one call."""
        start = time.perf_counter()
        if timed.untimed:
            timed.run()
        chains = (self._between(timed.run, timed.chain) for _ in range(timed.repeats))
        timed.warm.append(statistics.median(chains) / timed.chain)
        if self.cuda:
            self._flush.zero_()
            timed.cold.append(self._between(timed.run, 1))
        timed.spent += time.perf_counter() - start

    def _issue(self, call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def _between(self, run: Callable[[], object], times: int) -> float:
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(times):
                run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)


def chain_length(kind: str, seconds: float) -> int:
    """Calls of a chain, for a call that takes ``seconds`` on "cpu" or "cuda"."""
    return max(1, min(LONGEST_CHAIN[kind], int(CHAIN_SECONDS[kind] / max(seconds, 1e-9))))


def order(count: int, turn: int) -> list[int]:
    """The order of ``count`` calls in round ``turn``: a rotation, every second round backwards."""
    rotated = [(i + turn) % count for i in range(count)]
    return rotated[::-1] if turn % 2 else rotated


_FAILED: list[torch.cuda.CUDAGraph] = []


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # The outer one leaves the stream also where torch.cuda.graph fails to end the capture, and
        # then does not.
        with torch.cuda.stream(side), torch.cuda.graph(graph, stream=side):
            call()
    except BaseException:
        _FAILED.append(graph)  # the allocator may go on to ask it which streams it captures: it must not go
        raise
    return graph


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
