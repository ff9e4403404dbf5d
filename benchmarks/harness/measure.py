"""How the peers are checked, timed and their memory measured: in turn, medians, and each one's peak by itself."""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.harness.child import Child
from xmemk.benchmarks.harness.stopwatch import Stopwatch, Timed, first_line, order
from xmemk.benchmarks.peers.registry import Peer, Unavailable, missing
from xmemk.benchmarks.peers.verdicts import relative_error, status, verdict
from xmemk.benchmarks.peers.workloads import WORKLOADS, Case, make_case

from xmemk.measure.peak import Peak
from xmemk.testing import Comparison


@dataclass
class Row:
    """One peer on one case. ``reason`` says why there is no time, or what is to be said beside it.

    seconds: one number a round; on a GPU the device's, from a warm cache. ratios: to ours in the same round; ratio:
    their median. device_seconds: the median of seconds on a GPU, cold_seconds the same after the cache was overwritten.
    host_seconds: what it takes to issue a call.
    """

    peer: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)
    status: str = ""
    error: float | None = None
    relative_error: float | None = None
    reason: str = ""
    extra_bytes: int | None = None
    device_seconds: float | None = None
    cold_seconds: float | None = None
    host_seconds: float | None = None
    ratios: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    of_roof: float | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        found = {**asdict(self), "median": self.median, "spread": self.spread, "ratio": self.ratio}
        del found["ratios"], found["cold"]
        return found


class Lost(Exception):
    """The device does nothing more for this process, as after an illegal memory access: whose call it was ("" for the
    inputs), and what it raised."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(reason)
        self.peer, self.reason = peer, reason


def answers(device: torch.device) -> bool:
    """Whether a device still works for this process. The words of an error do not tell: libraries use the same ones
    for what they do not support."""
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


# What a trial in a process of its own found: the peak of memory beyond the inputs, or why there is none.
Trial = tuple["int | None", str]


def time_peers(
    case: Case,
    peers: list[Peer],
    *,
    rounds: int,
    budget: float,
    said: Callable[[str], None] = lambda _: None,
    judge: Callable[[Case, Any], Comparison | None] = verdict,
    trial: Callable[[Peer], Trial] | None = None,
    until: float | None = None,
) -> list[Row]:
    """Checks each peer, then times them in turn, round by round, so that a busy machine slows them alike.

    A peer whose rounds have taken ``budget`` seconds is left out of the rest. One that fails or is wrong is not timed.
    One that ``risky`` or too large a matrix makes doubtful goes through ``trial`` first. No peer is begun after
    ``until`` (of time.monotonic). Raises Lost.
    """
    device = case.device
    watch = Stopwatch(str(device))
    rows: list[Row] = []
    calls: dict[str, Timed] = {}
    for peer in peers:
        said(peer.name)
        row = Row(peer.name, peer.ours)
        rows.append(row)
        row.reason = missing(peer) or ""
        if until is not None and time.monotonic() > until:
            row.reason = "not reached in the time given"
        elif not row.reason and trial is not None and (peer.risky or doubtful(case, peer)):
            row.extra_bytes, row.reason = trial(peer)
        if row.reason:
            continue
        try:
            calls[peer.name] = checked(case, peer, row, watch, judge)
            synchronize(device)  # what it has begun may still fail, and is its own
        except Unavailable as reason:
            row.reason = str(reason)
        except Exception as failure:  # a peer is other people's code: its failure is a row, never the end of the run
            row.reason = failed(failure, peer.name, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what a failed peer left, and the caches of one that is done
        if row.status == "WRONG":
            calls.pop(peer.name, None)
    in_turn(rows, calls, watch, rounds, budget, said)
    return rows


def time_again(
    case: Case,
    peers: list[Peer],
    rows: list[Row],
    *,
    rounds: int,
    budget: float,
    in_all: float,
    said: Callable[[str], None] = lambda _: None,
) -> None:
    """More rounds of the peers that :func:`time_peers` timed, on the case made anew, into the rows that it gave.

    A peer whose calls have taken ``in_all`` seconds is left as it is; so is one that compiles: it would do so again.
    Raises Lost.
    """
    watch = Stopwatch(str(case.device))
    calls: dict[str, Timed] = {}
    of = {row.peer: row for row in rows if row.seconds and sum(row.seconds) < in_all}
    for peer in peers:
        if peer.compiled or peer.name not in of:
            continue
        said(peer.name)
        row = of[peer.name]
        try:
            call = peer.prepare(case)
            call()  # as time_peers does: nothing is timed that was not called before on these inputs
            calls[peer.name] = watch.prepare(call, row.median)
            synchronize(case.device)
        except Exception as failure:
            row.reason = row.reason or failed(failure, peer.name, case.device)
    in_turn(rows, calls, watch, rounds, budget, said)


def in_turn(
    rows: list[Row], calls: dict[str, Timed], watch: Stopwatch, rounds: int, budget: float, said: Callable[[str], None]
) -> None:
    """Times the calls in turn, round by round; what is found goes into the rows of their names."""
    timed = [row for row in rows if row.peer in calls]
    turn = max((len(row.seconds) for row in timed), default=0)  # the order goes on where earlier sweeps left it
    for i in range(rounds if calls else 0):
        said(f"round {i + 1} of {rounds}")
        for at in order(len(timed), turn + i):
            one = calls[timed[at].peer]
            if one.spent > budget or (i > 0 and one.spent >= budget):
                continue
            try:
                watch.measure(one)
            except Exception as failure:
                one.note, one.spent = failed(failure, timed[at].peer, watch.device), float("inf")
    for row in timed:
        fill(row, calls[row.peer])
    compare_with_ours(rows, [calls[row.peer].warm if row.peer in calls else [] for row in rows])


def failed(failure: Exception, peer: str, device: torch.device) -> str:
    """The reason for a peer's row. Raises Lost where the failure took the device along."""
    reason = first_line(failure)
    if not answers(device):
        raise Lost(peer, reason) from failure
    return reason


def checked(case: Case, peer: Peer, row: Row, watch: Stopwatch, judge: Callable[..., Comparison | None]) -> Timed:
    """Runs a peer once, judges the result, and makes it ready to be timed. Raises what the peer raises."""
    call = peer.prepare(case)
    if peer.compiled:
        call()
    start = time.perf_counter()
    if watch.cuda:
        call()  # compiles kernels, allocates
        with Peak(case.device) as peak:
            result = call()
        row.extra_bytes = peak.bytes
    else:
        result = call()
    first = time.perf_counter() - start
    compared = judge(case, result)
    if compared is not None:
        row.error = compared.error
        if judge is verdict and (watch.cuda or not compared.passed):
            row.relative_error = relative_error(case, result)
    small = judge is verdict and case.inputs.mk.dtype in (torch.float16, torch.bfloat16)
    row.status = status(compared, row.relative_error, peer.rounded or small)
    del result
    if row.status == "WRONG":
        row.reason = f"wrong: {compared}"
        return Timed(call)
    return watch.prepare(call, first)


def fill(row: Row, timed: Timed) -> None:
    """What was measured of a peer, into its row."""
    row.seconds += timed.warm
    row.reason = row.reason or timed.note
    row.host_seconds = timed.host
    row.cold += timed.cold
    if row.cold:
        row.device_seconds, row.cold_seconds = row.median, statistics.median(row.cold)


def compare_with_ours(rows: list[Row], seconds: list[list[float]]) -> None:
    """Adds to ``ratios``: how many times our first row's seconds of a round a peer's of the same round are."""
    base = next((ours for row, ours in zip(rows, seconds) if row.ours and row.seconds), [])
    for row, theirs in zip(rows, seconds):
        row.ratios += [one / ours for one, ours in zip(theirs, base)]


def doubtful(case: Case, peer: Peer) -> bool:
    """Whether a formulation that builds N x Q matrices, as all but ours do, may take more memory than there is."""
    meminfo = Path("/proc/meminfo")
    if peer.ours or case.inputs.mk.is_cuda or not meminfo.exists():
        return False
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return found is not None and 6 * 4 * case.matrix > 1024 * int(found[1])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(case: Case, peer: Peer) -> int | None:
    """Bytes that one call takes at its peak beyond its inputs, in this process."""
    call = peer.prepare(case)
    if peer.compiled:
        call()  # what the compiler takes is not the call's
    else:  # libraries and thread pools wake up with a small one
        tiny = make_case(case.op, WORKLOADS["tiny"], device=case.inputs.qk.device)
        peer.prepare(tiny)()
    with Peak(case.inputs.qk.device) as peak:
        result = call()
        synchronize(case.inputs.qk.device)
    del result
    return peak.bytes


def in_fresh_process(arguments: dict[str, Any], timeout: float) -> Trial:
    """:func:`peak_of` in a new process, or why there is no figure. ``arguments`` as run.py takes them.

    So a peer that hangs, is killed for its memory or crashes takes nothing with it.
    """
    command = [sys.executable, str(Path(__file__).parents[1] / "run.py"), "--peak-of", json.dumps(arguments)]
    with Child(command) as child:
        try:
            said = list(child.lines(timeout))
        except TimeoutError as late:
            return None, f"it {late}"
        code, how = child.end()
    if code:
        return None, how
    try:
        told = json.loads(said[-1])
        return told["extra_bytes"], told["reason"]
    except (IndexError, KeyError, TypeError, ValueError):
        return None, "its process ended without a result"
