"""Times of calls on a GPU: the device's, by replays of a CUDA graph between events, and the host's, to issue a call.

Warm is the mean of a chain of replays, cold one replay after the second-level cache was overwritten; both are medians
over rounds that go through all calls in turn, so that what changes in a machine falls on all of them.
On the CPU, where this runs to be tested, the time is the clock's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

CHAIN_SECONDS = 2e-3
LONGEST_CHAIN = 50


@dataclass
class Timed:
    """A call that is being timed; times in microseconds."""

    run: Callable[[], object]
    note: str = ""
    chain: int = 1
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float | None]:
        def middle(values: list[float]) -> float | None:
            return statistics.median(values) if values else None

        spread = (max(self.warm) - min(self.warm)) / statistics.median(self.warm) if self.warm else None
        return {
            "warm_us": middle(self.warm),
            "spread": spread,
            "cold_us": middle(self.cold),
            "host_us": middle(self.host),
        }


class Stopwatch:
    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(0).L2_cache_size
            self._flush = torch.empty(2 * cache, dtype=torch.int8, device=device)

    def prepare(self, call: Callable[[], object]) -> Timed:
        """Warms up, measures the host, and captures a graph; a call that cannot be captured is timed as it is."""
        for _ in range(3):
            call()
        host = [self._issue(call) for _ in range(10)] if self.cuda else []
        timed = Timed(call, host=host)
        if self.cuda:
            try:
                timed.run = _captured(call).replay
            except RuntimeError as error:
                torch.cuda.synchronize()
                timed.note = f"no graph: {first_line(error)}"
        one = self._between(timed.run, 1) * 1e-6
        timed.chain = max(1, min(LONGEST_CHAIN, int(CHAIN_SECONDS / max(one, 1e-9))))
        return timed

    def measure(self, timed: Timed) -> None:
        """One round."""
        timed.warm.append(self._between(timed.run, timed.chain) / timed.chain)
        if self.cuda:
            self._flush.zero_()
            timed.cold.append(self._between(timed.run, 1))

    def _issue(self, call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start)

    def _between(self, run: Callable[[], object], times: int) -> float:
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(times):
                run()
            return 1e6 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
