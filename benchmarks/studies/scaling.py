"""Time and extra memory of a read against the memory's size N, the queries Q, the objects O, k, and
threads.

    python benchmarks/studies/scaling.py [--axis N Q O k threads] [--quick] [--budget SECONDS] [--save FILE] [--gb 12]

One axis is varied, the rest is that of a named workload (``BASES``). Three peers are measured as
far as each fits: ours, tidy PyTorch and the original's formulation. What a point would take is
computed before it is tried, its memory by ``needed_bytes``, its time from the points before on the
same axis. A point that would take too much is a row with that reason, and with
"extrapolated_seconds" where two points came before it. With --budget all curves share the seconds
given, and what they do not suffice for is such a row, too. Interrupted or not, what was measured is
written to the file. Each peer is compared with float64 on some queries and 32 value channels before
it is timed. Extra memory is the peak of one call beyond its inputs.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from xmemk.benchmarks.harness import record
from xmemk.benchmarks.harness.arguments import StudyParser, positive
from xmemk.benchmarks.harness.peaks import peak_of
from xmemk.benchmarks.harness.round_timer import CHAIN_SECONDS
from xmemk.benchmarks.harness.timing import Tell, available_bytes, printed, time_peers
from xmemk.benchmarks.peers.catalogue import CHECKED_QUERIES, Call, Peer, peers_of
from xmemk.benchmarks.peers.workloads import READS, WORKLOADS, OpCase, Workload, make_case, sizes_of
from xmemk.benchmarks.report.formatting import duration, percent, size
from xmemk.benchmarks.report.schema import NOT_REACHED, CaseResult, Measurement

from xmemk import ops
from xmemk.testing import Inputs

BASES = {"N": "480p-full", "Q": "480p-full", "O": "480p-early", "k": "480p-full", "threads": "480p-full"}
OPS = {"N": (*READS, "consolidate"), "Q": READS, "O": READS, "k": ("memory_read",), "threads": READS}
VALUES = {
    "N": (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
    "Q": (375, 920, 1_620, 3_600, 8_160, 14_400, 32_400),  # 240p, 360p, 480p, 720p, 1080p, 1440p, 4K
    "O": (1, 2, 4, 8, 16, 32),
    "k": (1, 8, 30, 64, 128, 256),
}
QUICK = {"N": (1_000, 10_000, 100_000), "Q": (375, 1_620, 8_160), "O": (1, 4, 16), "k": (1, 30, 256)}
QUICK_BASE = "480p-early"
OTHERS = ("tidy PyTorch", "original")
CHECKED_CHANNELS = 32
OUR_BYTES = 100_000_000  # more than our read takes beside its readout
UNKNOWN_MEMORY = 8e9  # bytes of a point where the system does not tell what is free


@dataclass(frozen=True)
class PointLimits:
    """bytes: inputs, a call and its check. seconds: one call. budget: a peer's rounds."""

    bytes: float
    seconds: float = 10.0
    rounds: int = 5
    budget: float = 4.0


@dataclass(frozen=True)
class Point:
    """One op at one place of an axis."""

    axis: str
    value: int
    op: str
    workload: Workload
    objects: int = 1
    threads: int = 1

    @property
    def tokens_and_queries(self) -> tuple[int, int]:
        sizes = sizes_of(self.op, self.workload)
        return sizes["tokens"] or 0, sizes["queries"] or 0


def points(axis: str, threads: int, *, quick: bool = False) -> Iterator[Point]:
    """Op by op, from small to large."""
    base = WORKLOADS[QUICK_BASE if quick else BASES[axis]]
    for op in ("memory_read",) if quick else OPS[axis]:
        for value in values_of(axis, quick):
            sizes: dict[str, Any] = {
                "N": {"tokens": value, "candidates": value, "prototypes": min(base.prototypes, value)},
                "Q": {"queries": value},
                "k": {"top_k": value},
            }.get(axis, {})
            objects, used = value if axis == "O" else 1, value if axis == "threads" else threads
            yield Point(axis, value, op, replace(base, **sizes), objects, used)


def values_of(axis: str, quick: bool) -> tuple[int, ...]:
    """Threads: 1, 2, 4, ... and as many as there are cores."""
    if axis != "threads":
        return (QUICK if quick else VALUES)[axis]
    cores = os.cpu_count() or 1
    between = () if quick else (2**i for i in range(cores.bit_length()) if 2**i < cores)
    return tuple(sorted({1, *between, cores}))


def input_bytes(point: Point) -> int:
    """Of what all peers are given: keys, selections, values, shrinkage, usage, queries."""
    w, (n, q) = point.workload, point.tokens_and_queries
    return 4 * (n * (2 * w.key_channels + point.objects * w.value_channels + 2) + 2 * q * w.key_channels)


def needed_bytes(point: Point, peer: str) -> int:
    """About what a point takes at its peak, inputs included, by what its formulation has to hold at
    once.

    tidy: augmented keys [N, 2 CK + 1], scores [N, Q], for a dense read their softmax beside them.
    original: a copy of the memory, k^2, and of N x Q matrices 5, 4 in a dense read or a
    consolidation. Ours: the readout and 100 MB. The check holds some ten [N, 40] matrices and the
    keys, in float64.
    """
    w, (n, q) = point.workload, point.tokens_and_queries
    topk = point.op == "memory_read"
    if peer == "original":
        copy = n * (w.key_channels + 1 + point.objects * w.value_channels) if topk else 0
        call = 4 * (copy + n * w.key_channels + (5 if topk else 4) * n * q)
    elif peer == "tidy PyTorch":
        call = 4 * (n * (2 * w.key_channels + 1) + (1 if topk else 2) * n * q)
    else:
        call = OUR_BYTES
    checked = w.prototypes if point.op == "consolidate" else CHECKED_QUERIES
    check = 8 * n * (3 * w.key_channels + 3 * CHECKED_CHANNELS + 10 * checked)
    return input_bytes(point) + 4 * q * point.objects * w.value_channels + max(call, check)


Past = list[tuple[int, float]]  # values of an axis, ascending, and the seconds that a peer took there


def refusal(point: Point, peer: str, past: Past, limits: PointLimits) -> str:
    """Why a point is not tried, or ""."""
    needed = needed_bytes(point, peer)
    if needed > limits.bytes:
        return f"would take {needed / 1e9:.1f} GB, more than {limits.bytes / 1e9:.3g}"
    if not past or point.axis == "threads":
        return ""
    seconds = predicted(point, past)
    if seconds > limits.seconds:
        at, took = past[-1]
        return f"would take {seconds:.1f} s ({took:.1f} s at {point.axis} = {at:,}), more than {limits.seconds:g}"
    return ""


def predicted(point: Point, past: Past) -> float:
    """On the line through the last two of this axis, or, from one, in proportion to N or Q."""
    at, took = past[-1]
    if len(past) > 1:
        earlier, less = past[-2]
        return max(took, took + (took - less) * (point.value - at) / (at - earlier))
    return took * point.value / at if point.axis in "NQ" else took


def measured(point: Point, limits: PointLimits, past: dict[str, Past], until: float | None = None) -> list[Measurement]:
    """The rows of one point; ``past``: of each peer what it took at smaller values of this axis,
    which is added to.

    ``until`` (of time.monotonic): a peer that would not be done by then is not begun, and what is
    under way is left.
    """
    torch.set_num_threads(point.threads)
    rows, tried = [], []
    left = math.inf if until is None else until - time.monotonic()
    for peer in chosen(point.op):
        known = past.get(peer.name, [])
        reason = refusal(point, peer.name, known, limits)
        longest = 0.0
        if known and point.axis != "threads":
            one = predicted(point, known)
            # Twice for its peak, twice to be checked and warm, and the rounds.
            longest = 4 * one + max(one, min(limits.budget, limits.rounds * max(one, CHAIN_SECONDS["cpu"])))
        if not reason and (left <= 0 or longest > left):
            reason = NOT_REACHED
        rows.append(Measurement(peer.name, peer.ours, reason=reason))
        if not reason:
            tried.append(peer)
            left -= longest
    if tried:
        try:
            with alarm(until):
                timed = {row.peer: row for row in time_point(point, tried, limits)}
        except OutOfTime:
            timed = {peer.name: Measurement(peer.name, peer.ours, reason=NOT_REACHED) for peer in tried}
        rows = [timed.get(row.peer, row) for row in rows]
        gc.collect()
    for row in rows:
        if row.median is not None:
            past.setdefault(row.peer, []).append((point.value, row.median))
        elif len(known := past.get(row.peer, [])) > 1 and point.axis != "threads":
            row.extrapolated_seconds = predicted(point, known)
    return rows


def time_point(point: Point, peers: list[Peer], limits: PointLimits) -> list[Measurement]:
    """The rows of those that are tried."""
    case = make_case(point.op, point.workload, objects=point.objects)
    peaks: dict[str, int | None] = {}
    for peer in peers:
        with contextlib.suppress(Exception):  # why it fails, time_peers will say
            peaks[peer.name] = peak_of(case, peer)
    checked = [through_check(case, peer) for peer in peers]
    rows = time_peers(thinned(case), checked, rounds=limits.rounds, budget=limits.budget)
    for row in rows:
        row.extra_bytes = peaks.get(row.peer) if row.median is not None else None
    return rows


class OutOfTime(BaseException):
    """The time given is over. No Exception: those are taken for failures of a peer."""


@contextlib.contextmanager
def alarm(until: float | None) -> Iterator[None]:
    """Raises OutOfTime inside when the time has come, where the system has such signals."""
    if until is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> NoReturn:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: an exception in a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, until - time.monotonic()), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def chosen(op: str) -> list[Peer]:
    backend = "torch" if ops.native_error() is not None else "cpu"
    return [peer for peer in peers_of(op, [backend]) if peer.ours or peer.name in OTHERS]


def thinned(case: OpCase) -> OpCase:
    """The case with some channels of the first object's values, which is what is checked."""
    x = case.inputs
    return OpCase(case.op, case.workload, Inputs(x.mk, x.ms, _some(x.mv), x.qk, x.qe, x.me, x.usage))


def through_check(case: OpCase, peer: Peer) -> Peer:
    """The peer on the whole case, its result cut to what :func:`thinned` keeps, by a view."""

    def prepare(_: OpCase) -> Call:
        call = peer.prepare(case)

        def cut() -> Any:
            result = call()
            if case.op == "consolidate":
                pk, ps, pv = result
                return pk, ps, _some(pv)
            return _some(result[0]), result[1]

        return cut

    return Peer(peer.name, prepare, peer.compiled, peer.ours)


def _some(values: torch.Tensor) -> torch.Tensor:
    return values[:, :1, :: max(1, values.shape[2] // CHECKED_CHANNELS)]


def default_bytes() -> float:
    """Half of what this machine has free, so that nothing is swapped."""
    return 0.5 * (available_bytes() or 2 * UNKNOWN_MEMORY)


def measure(
    axes: list[str],
    limits: PointLimits,
    *,
    quick: bool = False,
    budget: float | None = None,
    tell: Tell = printed,
    results: list[CaseResult] | None = None,
) -> list[CaseResult]:
    """The results along these axes, also put into ``results`` as they come; ``tell`` gets a line
    for each row.

    ``budget``: seconds for all of it, shared alike by the curves that are still to be measured.
    """
    threads = torch.get_num_threads()
    results = [] if results is None else results
    end = None if budget is None else time.monotonic() + budget
    curves = [
        list(group)
        for axis in axes
        for _, group in itertools.groupby(points(axis, threads, quick=quick), key=lambda point: point.op)
    ]
    try:
        for at, curve in enumerate(curves):
            past: dict[str, Past] = {}
            now = time.monotonic()
            until = None if end is None else now + (end - now) / (len(curves) - at)
            for point in curve:
                rows = measured(point, limits, past, until)
                results.append(result_of(point, rows))
                for row in rows:
                    tell(line(point, row))
    finally:
        torch.set_num_threads(threads)
    return results


def result_of(point: Point, rows: list[Measurement]) -> CaseResult:
    w = point.workload
    result = CaseResult(point.op, w.name, point.objects, "float32", "cpu", point.threads, rows)
    vars(result).update(sizes_of(point.op, w), axis=point.axis, value=point.value)
    return result


def line(point: Point, row: Measurement) -> str:
    place = f"{point.op:17} {point.axis} = {point.value:>9,}  {row.peer:14}"
    if row.median is None:
        return f"{place} {row.reason}"
    return (
        f"{place} {duration(row.median):>8} +- {percent(row.spread):5} {size(row.extra_bytes)}  {row.reason}".rstrip()
    )


def main(words: list[str] | None = None) -> None:
    parser = StudyParser(__doc__, "the top-k read alone, from a small memory")
    parser.add_argument("--axis", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--budget", type=positive, metavar="SECONDS", help="end within so many; say what is left out")
    parser.add_argument("--gb", type=positive, help="most memory of a point; by default half of what is free")
    parser.add_argument("--seconds", type=positive, help="a point is left out whose call would take longer")
    options = parser.parse(words)
    limits = PointLimits(options.gb * 1e9 if options.gb else default_bytes())
    if options.quick:
        limits = replace(limits, seconds=1.2, rounds=3, budget=0.25)
    if options.seconds:
        limits = replace(limits, seconds=options.seconds)
    with record.recorded("scaling", options.save) as results:
        measure(options.axis, limits, quick=options.quick, budget=options.budget, results=results)


if __name__ == "__main__":
    main()
