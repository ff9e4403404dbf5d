"""How the peers are checked and timed: each is judged first, then all take turns."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.harness.peaks import Trial
from xmemk.benchmarks.harness.round_timer import RoundTimer, TimedCall, first_line, order, synchronize
from xmemk.benchmarks.peers.catalogue import Peer, Unavailable, missing
from xmemk.benchmarks.peers.verdicts import relative_error, status, verdict
from xmemk.benchmarks.peers.workloads import OpCase
from xmemk.benchmarks.report.schema import NOT_REACHED, Measurement

from xmemk.measure.peak import Peak
from xmemk.testing import Comparison

Judge = Callable[[Any, Any], "Comparison | None"]
Tell = Callable[[str], None]
MATRICES = 6  # N x Q numbers in float32 that a formulation may hold at once


def silent(_: str) -> None:
    """Tells nobody."""


def printed(text: str) -> None:
    print(text, flush=True)


class DeviceLost(Exception):
    """The device does nothing more for this process, as after an illegal memory access.

    peer: whose call it was, "" for the inputs. reason: what it raised.
    """

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(reason)
        self.peer, self.reason = peer, reason


def answers(device: torch.device) -> bool:
    """Whether a device still works for this process.

    The words of an error do not tell: libraries use the same ones for what they do not support.
    """
    try:
        synchronize(device)
    except RuntimeError:
        return False
    return True


def time_peers(
    case: OpCase,
    peers: list[Peer],
    *,
    rounds: int,
    budget: float,
    tell: Tell = silent,
    judge: Judge = verdict,
    trial: Callable[[Peer], Trial] | None = None,
    until: float | None = None,
) -> list[Measurement]:
    """Checks each peer, then times them in turn, round by round, so that a busy machine slows them
    alike.

    A peer whose rounds have taken ``budget`` seconds is left out of the rest. One that fails or is
    wrong is not timed. One that ``risky`` or too large a matrix makes doubtful goes through
    ``trial`` first. No peer is begun after ``until`` (of time.monotonic). Raises DeviceLost.
    """
    device = case.device
    timer = RoundTimer(str(device))
    rows: list[Measurement] = []
    calls: dict[str, TimedCall] = {}
    for peer in peers:
        tell(peer.name)
        row = Measurement(peer.name, peer.ours, reason=missing(peer) or "")
        rows.append(row)
        if until is not None and time.monotonic() > until:
            row.reason = NOT_REACHED
        elif not row.reason and trial is not None and (peer.risky or doubtful(case, peer)):
            row.extra_bytes, row.reason = trial(peer)
        if row.reason:
            continue
        try:
            calls[peer.name] = checked(case, peer, row, timer, judge)
            synchronize(device)  # what it has begun may still fail, and is its own
        except Unavailable as reason:
            row.reason = str(reason)
        except Exception as failure:  # other people's code: its failure is a row, never the end of the run
            row.reason = failed(failure, peer.name, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what a failed peer left, and the caches of one that is done
        if row.status == "WRONG":
            calls.pop(peer.name, None)
    in_turn(rows, calls, timer, rounds, budget, tell)
    return rows


def time_again(
    case: OpCase,
    peers: list[Peer],
    rows: list[Measurement],
    *,
    rounds: int,
    budget: float,
    in_all: float,
    tell: Tell = silent,
) -> None:
    """More rounds of the peers that :func:`time_peers` timed, on the case made anew, into its rows.

    A peer whose calls have taken ``in_all`` seconds is left as it is; so is one that compiles,
    which would do so again. Raises DeviceLost.
    """
    timer = RoundTimer(str(case.device))
    calls: dict[str, TimedCall] = {}
    row_of = {row.peer: row for row in rows if row.seconds and sum(row.seconds) < in_all}
    for peer in peers:
        if peer.compiled or peer.name not in row_of:
            continue
        tell(peer.name)
        row = row_of[peer.name]
        try:
            call = peer.prepare(case)
            call()  # as time_peers does: nothing is timed that was not called before on these inputs
            calls[peer.name] = timer.prepare(call, row.median)
            synchronize(case.device)
        except Exception as failure:
            row.reason = row.reason or failed(failure, peer.name, case.device)
    in_turn(rows, calls, timer, rounds, budget, tell)


def in_turn(
    rows: list[Measurement], calls: dict[str, TimedCall], timer: RoundTimer, rounds: int, budget: float, tell: Tell
) -> None:
    """Times the calls in turn, round by round, into the rows of their names."""
    timed = [row for row in rows if row.peer in calls]
    turn = max((len(row.seconds) for row in timed), default=0)  # the order goes on where earlier sweeps left it
    for i in range(rounds if calls else 0):
        tell(f"round {i + 1} of {rounds}")
        for at in order(len(timed), turn + i):
            call = calls[timed[at].peer]
            if call.spent > budget or (i > 0 and call.spent >= budget):
                continue
            try:
                timer.measure(call)
            except Exception as failure:
                call.note, call.spent = failed(failure, timed[at].peer, timer.device), float("inf")
    for row in timed:
        call = calls[row.peer]
        row.seconds += call.warm
        row.cold += call.cold
        row.host_seconds = call.host
        row.reason = row.reason or call.note
    compare_with_ours(rows, [calls[row.peer].warm if row.peer in calls else [] for row in rows])


def failed(failure: Exception, peer: str, device: torch.device) -> str:
    """The reason for a peer's row. Raises DeviceLost where the device no longer works."""
    reason = first_line(failure)
    if not answers(device):
        raise DeviceLost(peer, reason) from failure
    return reason


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
        with Peak(case.device) as peak:
            result = call()
        row.extra_bytes = peak.bytes
    else:
        result = call()
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


def compare_with_ours(rows: list[Measurement], seconds: list[list[float]]) -> None:
    """Adds to ``ratios``: seconds of a round, divided by our first row's in the same round."""
    base = next((ours for row, ours in zip(rows, seconds) if row.ours and row.seconds), [])
    for row, theirs in zip(rows, seconds):
        row.ratios += [one / ours for one, ours in zip(theirs, base)]


def available_bytes() -> int | None:
    """Memory that is free for new programs; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    line = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return 1024 * int(line[1]) if line else None


def doubtful(case: OpCase, peer: Peer) -> bool:
    """Whether the N x Q matrices of a formulation, of all but ours, may not fit into memory."""
    if peer.ours or case.inputs.mk.is_cuda:
        return False
    available = available_bytes()
    return available is not None and MATRICES * 4 * case.matrix > available
