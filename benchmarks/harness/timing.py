"""How the peers are checked and timed: each is judged first, then all take turns.

On a GPU a time is the device's, by replays of a CUDA graph between events: warm is the mean of a
chain of replays, cold one replay after the second-level cache was overwritten. On the CPU there is
warm alone: the clock's time of a chain of calls, the median of REPEATS chains. The fastest chain
would favour short calls, which find a quiet moment more easily than long ones. A round goes through
all calls, so that other work on the machine falls on all of them. Their order changes, so that no
call always comes after the same one.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from xmemk.benchmarks.peers.catalogue import Peer, Unavailable, missing
from xmemk.benchmarks.peers.verdicts import relative_error, status, verdict
from xmemk.benchmarks.peers.workloads import OpCase
from xmemk.benchmarks.report.schema import NOT_REACHED, Measurement

from xmemk.measure.peak import Peak
from xmemk.testing import Comparison

Judge = Callable[[Any, Any], "Comparison | None"]
Tell = Callable[[str], None]
Trial = tuple["int | None", str]  # the peak beyond the inputs in bytes, or why there is none
MATRICES = 6  # N x Q numbers in float32 that a formulation may hold at once
CHAIN_SECONDS = {"cpu": 3e-2, "cuda": 2e-3}
REPEATS = {"cpu": 3, "cuda": 1}
NOT_REPEATED_FROM = 0.5  # seconds of a call
LONGEST_CHAIN = {"cpu": 2000, "cuda": 50}
UNTIMED_BELOW = 5e-2  # a call shorter than this is made once, untimed, before each chain


def silent(_: str) -> None:
    """Tells nobody."""


class DeviceLost(Exception):
    """The device does nothing more for this process, as after an illegal memory access.

    peer: whose call it was, "" for the inputs. reason: what it raised.
    """

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(reason)
        self.peer, self.reason = peer, reason


def time_peers(
    case: OpCase, peers: list[Peer], *, rounds: int, budget: float, tell: Tell = silent, judge: Judge = verdict,
    trial: Callable[[Peer], Trial] | None = None, until: float | None = None,
    earlier: dict[str, Measurement] | None = None,
) -> list[Measurement]:  # fmt: skip
    """Checks each peer, then times them in turn, round by round, so that a busy machine slows them
    alike.

    A peer whose rounds have taken ``budget`` seconds is left out of the rest. One that fails or is
    wrong is not timed. One that ``risky`` or too large a matrix makes doubtful goes through
    ``trial`` first. No peer but the first is begun after ``until`` (of time.time).

    ``earlier``: rows by peer that were timed on the same case, made anew since. They get more
    rounds, and no other peer does; nor do those that compile, which would do so again. Raises
    DeviceLost.
    """
    timer = RoundTimer(case.device)
    rows: list[Measurement] = []
    calls: dict[str, TimedCall] = {}
    for peer in peers:
        row = Measurement(peer.name, peer.ours, reason=missing(peer) or "")
        if earlier is not None:
            row = earlier.get(peer.name, row)
            if peer.compiled or not row.seconds:
                continue
        tell(peer.name)
        rows.append(row)
        if earlier is not None:
            with timer.reasons(row):
                call = peer.prepare(case)
                call()  # as for checked ones: nothing is timed that was not called before on these inputs
                calls[peer.name] = timer.prepare(call, row.median)
            continue
        if until is not None and time.time() > until and len(rows) > 1:
            row.reason = NOT_REACHED
        elif not row.reason and trial is not None and (peer.risky or doubtful(case, peer)):
            row.extra_bytes, row.reason = trial(peer)
        if not row.reason:
            with timer.reasons(row):
                calls[peer.name] = checked(case, peer, row, timer, judge)
        if timer.cuda:
            torch.cuda.empty_cache()  # what a failed peer left, and the caches of one that is done
        if row.status == "WRONG":
            calls.pop(peer.name, None)
    in_turn(rows, calls, timer, rounds, budget, tell, until)
    return rows


def checked(case: OpCase, peer: Peer, row: Measurement, timer: RoundTimer, judge: Judge) -> TimedCall:
    """Runs a peer once, judges the result, and makes it ready to be timed.

    Raises what the peer raises.
    """
    call = peer.prepare(case)
    if peer.compiled:
        call()
    start = time.perf_counter()
    if timer.cuda:
        call()  # compiles kernels, allocates
    with Peak(case.device) if timer.cuda else contextlib.nullcontext() as peak:
        result = call()
    row.extra_bytes = peak.bytes if peak else row.extra_bytes
    first = time.perf_counter() - start
    compared = judge(case, result)
    if compared is not None:
        row.error = compared.error
        if judge is verdict and (timer.cuda or not compared.passed):
            row.relative_error = relative_error(case, result)
    narrow = judge is verdict and case.inputs.mk.dtype in (torch.float16, torch.bfloat16)
    row.status = status(compared, row.relative_error, peer.rounded or narrow)
    del result
    if row.status == "WRONG":
        row.reason = f"wrong: {compared}"
        return TimedCall(call)
    return timer.prepare(call, first)


def in_turn(
    rows: list[Measurement], calls: dict[str, TimedCall], timer: RoundTimer, rounds: int, budget: float, tell: Tell,
    until: float | None = None,
) -> None:  # fmt: skip
    """Times the calls in turn, round by round, into the rows of their names; one round at least."""
    timed = [row for row in rows if row.peer in calls]
    turn = max((len(row.seconds) for row in timed), default=0)  # the order goes on where earlier sweeps left it
    for i in range(rounds if calls else 0):
        if i > 0 and until is not None and time.time() > until:
            break
        tell(f"round {i + 1} of {rounds}")
        for row in (timed[at] for at in order(len(timed), turn + i)):
            call = calls[row.peer]
            if call.spent > budget or (i > 0 and call.spent >= budget):
                continue
            with timer.reasons(row):
                timer.measure(call)
    for row in timed:
        call = calls[row.peer]
        row.seconds += call.warm
        row.cold += call.cold
        row.host_seconds = call.host
        row.reason = row.reason or call.note
    compare_with_ours(rows, [calls[row.peer].warm if row.peer in calls else [] for row in rows])


def compare_with_ours(rows: list[Measurement], seconds: list[list[float]]) -> None:
    """Adds to ``ratios``: seconds of a round, divided by our first row's in the same round."""
    base = next((ours for row, ours in zip(rows, seconds) if row.ours and row.seconds), [])
    for row, theirs in zip(rows, seconds):
        row.ratios += [one / ours for one, ours in zip(theirs, base)]


def available_bytes() -> int | None:
    """Memory that is free for new programs; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    line = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE) if meminfo.exists() else None
    return 1024 * int(line[1]) if line else None


def doubtful(case: OpCase, peer: Peer) -> bool:
    """Whether the N x Q matrices of a formulation, of all but ours, may not fit into memory."""
    available = None if peer.ours or case.inputs.mk.is_cuda else available_bytes()
    return available is not None and MATRICES * 4 * case.matrix > available


@runtime_checkable
class SelfTimed(Protocol):
    """A call that is made elsewhere, and timed there."""

    def seconds(self, times: int) -> float: ...


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
    """Times calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * cache, dtype=torch.int8, device=device)

    @contextlib.contextmanager
    def reasons(self, row: Measurement) -> Iterator[None]:
        """What a peer raises becomes the reason of its row. Raises DeviceLost.

        Other people's code: its failure is a row, never the end of the run.
        """
        try:
            yield
            synchronize(self.device)  # what it has begun may still fail, and is its own
        except Unavailable as reason:
            row.reason = str(reason)
        except Exception as failure:
            row.reason = row.reason or failed(failure, row.peer, self.device)

    def prepare(self, call: Callable[[], object], first: float | None = None) -> TimedCall:
        """Warms up, measures the host, and captures a graph; a call that cannot be captured is
        timed as it is.

        ``first`` is what a call took before, in seconds: a long one is not called again to be
        warmed up.
        """
        timed = TimedCall(call)
        if self.cuda and not isinstance(call, SelfTimed):
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
        timed.chain = chain_length(self.device.type, one)
        timed.repeats = REPEATS[self.device.type] if one < NOT_REPEATED_FROM else 1
        timed.untimed = one < UNTIMED_BELOW
        return timed

    def measure(self, timed: TimedCall) -> None:
        """One round of one call. One that raises is not timed again."""
        start, spent = time.perf_counter(), timed.spent
        timed.spent = float("inf")
        if timed.untimed:
            timed.run()
        chains = (self._between(timed.run, timed.chain) for _ in range(timed.repeats))
        timed.warm.append(statistics.median(chains) / timed.chain)
        if self.cuda:
            self._flush.zero_()
            timed.cold.append(self._between(timed.run, 1))
        timed.spent = spent + time.perf_counter() - start

    def _issue(self, call: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def _between(self, run: Callable[[], object], times: int) -> float:
        if isinstance(run, SelfTimed):
            return run.seconds(times)
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


def failed(failure: Exception, peer: str, device: torch.device) -> str:
    """The reason for a peer's row. Raises DeviceLost where the device no longer works.

    The words of an error do not tell: libraries use the same ones for what they do not support.
    """
    try:
        synchronize(device)
    except RuntimeError:
        raise DeviceLost(peer, first_line(failure)) from failure
    return first_line(failure)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
