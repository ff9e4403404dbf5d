"""Time and extra memory of a read against the memory's size N, the queries Q, the objects O, k, and threads.

    python benchmarks/studies/scaling.py [--axis N Q O k threads] [--quick] [--budget SECONDS] [--save FILE] [--gb 12]

One axis is varied, the rest is that of a named workload (``BASES``). Three peers, ours, tidy PyTorch and the original's
formulation, as far as each fits: what a point would take is computed before it is tried, its memory by
``wanted_bytes``, its time from the points before on the same axis, and a point that would take too much is a row with
that reason, and with "extrapolated_seconds" where two points came before it. With --budget what is measured shares the
seconds given, and what they do not suffice for is such a row, too. Interrupted or not, what was measured is written to
the file. Each peer is checked against float64 on some queries and 32 value channels before it is timed; extra
memory is the peak of one call beyond its inputs.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from xmemk.benchmarks.harness import record
from xmemk.benchmarks.harness.arguments import Parser, count, positive, result_file
from xmemk.benchmarks.harness.measure import Row, peak_of, time_peers
from xmemk.benchmarks.harness.stopwatch import CHAIN_SECONDS
from xmemk.benchmarks.peers.registry import CHECKED_QUERIES, Call, Peer, peers_of
from xmemk.benchmarks.peers.workloads import WORKLOADS, Case, Workload, make_case

from xmemk import operators as ops
from xmemk.testing import Inputs

BASES = {"N": "480p-full", "Q": "480p-full", "O": "480p-early", "k": "480p-full", "threads": "480p-full"}
OPS = {"N": ("read", "dense", "consolidate"), "Q": ("read", "dense"), "O": ("read", "dense"), "k": ("read",)}
OPS["threads"] = ("read", "dense")
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
NOT_REACHED = "not reached in the time given"


@dataclass(frozen=True)
class Limits:
    """bytes: of inputs, a call and its check. seconds: of one call. budget: of a peer's rounds at one point."""

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


def points(axis: str, threads: int, *, quick: bool = False) -> Iterator[Point]:
    """Op by op, from small to large."""
    base = WORKLOADS[QUICK_BASE if quick else BASES[axis]]
    for op in ("read",) if quick else OPS[axis]:
        for value in values_of(axis, quick):
            workload, objects, used = base, 1, threads
            if axis == "N":
                workload = replace(base, tokens=value, candidates=value, prototypes=min(base.prototypes, value))
            elif axis == "Q":
                workload = replace(base, queries=value)
            elif axis == "k":
                workload = replace(base, top_k=value)
            elif axis == "O":
                objects = value
            else:
                used = value
            yield Point(axis, value, op, workload, objects, used)


def input_bytes(point: Point) -> int:
    """Of what all peers are given: keys and selection of the memory, values, queries with theirs, shrinkage, usage."""
    w = point.workload
    n, q = (w.candidates, w.prototypes) if point.op == "consolidate" else (w.tokens, w.queries)
    return 4 * (n * (2 * w.key_channels + point.objects * w.value_channels + 2) + 2 * q * w.key_channels)


def wanted_bytes(point: Point, peer: str) -> int:
    """About what a point takes at its peak, inputs included, by what its formulation has to hold at once.

    tidy: augmented keys [N, 2 CK + 1], scores [N, Q], for a dense read their softmax beside them. original: a copy of
    the memory, k^2, and of N x Q matrices 5, 4 in a dense read or a consolidation. Ours: the readout and 100 MB. The
    check holds some ten [N, 40] matrices and the keys, in float64.
    """
    w = point.workload
    consolidates = point.op == "consolidate"
    n, q = (w.candidates, w.prototypes) if consolidates else (w.tokens, w.queries)
    readout = 4 * q * point.objects * w.value_channels
    matrix = 4 * n * q
    if peer == "original":
        copy = n * (w.key_channels + 1 + point.objects * w.value_channels) if point.op == "read" else 0
        call = 4 * (copy + n * w.key_channels) + (5 if point.op == "read" else 4) * matrix
    elif peer == "tidy PyTorch":
        call = 4 * n * (2 * w.key_channels + 1) + (1 if point.op == "read" else 2) * matrix
    else:
        call = 100_000_000
    checked = w.prototypes if consolidates else CHECKED_QUERIES
    check = 8 * n * (3 * w.key_channels + 3 * CHECKED_CHANNELS + 10 * checked)
    return input_bytes(point) + readout + max(call, check)


Past = list[tuple[int, float]]  # values of an axis, ascending, and the seconds that a peer took there


def refusal(point: Point, peer: str, past: Past, limits: Limits) -> str:
    """Why a point is not tried, or ""."""
    wanted = wanted_bytes(point, peer)
    if wanted > limits.bytes:
        return f"would take {wanted / 1e9:.1f} GB, more than {limits.bytes / 1e9:.3g}"
    if not past or point.axis == "threads":
        return ""
    seconds = predicted(point, past)
    if seconds > limits.seconds:
        at, took = past[-1]
        return f"would take {seconds:.1f} s ({took:.1f} s at {point.axis} = {at:,}), more than {limits.seconds:g}"
    return ""


def predicted(point: Point, past: Past) -> float:
    """Seconds of a point: on the line through the last two of this axis, or, from one, in proportion to N or Q."""
    at, took = past[-1]
    if len(past) > 1:
        earlier, less = past[-2]
        return max(took, took + (took - less) * (point.value - at) / (at - earlier))
    return took * point.value / at if point.axis in "NQ" else took


def measured(point: Point, limits: Limits, past: dict[str, Past], until: float | None = None) -> list[Row]:
    """The rows of one point; ``past``: of each peer what it took at smaller values of this axis, which is added to.

    ``until`` (of time.monotonic): a peer that would not be done by then is not begun, and what is under way is left.
    """
    torch.set_num_threads(point.threads)
    rows, tried = [], []
    left = math.inf if until is None else until - time.monotonic()
    for peer in chosen(point.op):
        known = past.get(peer.name, [])
        reason = refusal(point, peer.name, known, limits)
        # Twice for its peak, twice to be checked and warm, and the rounds.
        longest = 0.0
        if known and point.axis != "threads":
            one = predicted(point, known)
            longest = 4 * one + max(one, min(limits.budget, limits.rounds * max(one, CHAIN_SECONDS["cpu"])))
        if not reason and (left <= 0 or longest > left):
            reason = NOT_REACHED
        rows.append(Row(peer.name, peer.ours, reason=reason))
        if not reason:
            tried.append(peer)
            left -= longest
    if tried:
        try:
            with alarm(until):
                found = timed(point, tried, limits)
        except OutOfTime:
            found = {peer.name: Row(peer.name, peer.ours, reason=NOT_REACHED) for peer in tried}
        rows = [found.get(row.peer, row) for row in rows]
        gc.collect()
    for row in rows:
        if row.median is not None:
            past.setdefault(row.peer, []).append((point.value, row.median))
    return rows


def timed(point: Point, peers: list[Peer], limits: Limits) -> dict[str, Row]:
    """The rows of those that are tried, by name."""
    case = make_case(point.op, point.workload, objects=point.objects)
    peaks = {peer.name: peak(case, peer) for peer in peers}
    checked = [through_check(case, peer) for peer in peers]
    found = {row.peer: row for row in time_peers(thinned(case), checked, rounds=limits.rounds, budget=limits.budget)}
    for row in found.values():
        row.extra_bytes = peaks[row.peer] if row.median is not None else None
    return found


class OutOfTime(BaseException):
    """The time given is over. No Exception: those are taken for failures of a peer."""


@contextlib.contextmanager
def alarm(until: float | None) -> Iterator[None]:
    """Raises OutOfTime inside when the time has come, between two calls of a library; where there are no such signals,
    not.
    """
    if until is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> NoReturn:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again, since one that rings in a destructor is not heard.
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, until - time.monotonic()), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def chosen(op: str) -> list[Peer]:
    backend = "torch" if ops.native_error() is not None else "cpu"
    return [peer for peer in peers_of(op, [backend]) if peer.ours or peer.name in OTHERS]


def peak(case: Case, peer: Peer) -> int | None:
    """None also where the call fails: why, :func:`time_peers` will say."""
    try:
        return peak_of(case, peer)
    except Exception:
        return None


def thinned(case: Case) -> Case:
    """The case with some channels of the first object's values, which is what is checked."""
    x = case.inputs
    return Case(case.op, case.workload, Inputs(x.mk, x.ms, _some(x.mv), x.qk, x.qe, x.me, x.usage))


def through_check(case: Case, peer: Peer) -> Peer:
    """The peer on the whole case, its result cut to what :func:`thinned` keeps, by a view."""

    def prepare(_: Case) -> Call:
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
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()) if os.name == "posix" else None
    return 0.5 * 1024 * int(found[1]) if found else 8e9


def say(words: str) -> None:
    print(words, flush=True)


def measure(
    axes: list[str],
    limits: Limits,
    *,
    quick: bool = False,
    budget: float | None = None,
    said: Callable[[str], None] = say,
    results: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The results along these axes, as result files have them, also put into ``results`` as they come; ``said`` gets a
    line for each row. ``budget``: seconds for all of it, shared alike by the curves that are still to be measured.
    """
    given = torch.get_num_threads()
    results = [] if results is None else results
    end = None if budget is None else time.monotonic() + budget
    curves = [(axis, list(group)) for axis in axes for group in _by_op(points(axis, given, quick=quick))]
    try:
        for at, (_, curve) in enumerate(curves):
            past: dict[str, Past] = {}
            now = time.monotonic()
            until = None if end is None else now + (end - now) / (len(curves) - at)
            for point in curve:
                rows = measured(point, limits, past, until)
                results.append(as_dict(point, rows, past))
                for row in rows:
                    said(told(point, row))
    finally:
        torch.set_num_threads(given)
    return results


def _by_op(found: Iterator[Point]) -> Iterator[Iterator[Point]]:
    return (group for _, group in itertools.groupby(found, key=lambda point: point.op))


def values_of(axis: str, quick: bool) -> tuple[int, ...]:
    """Threads: 1, 2, 4, ... and as many as there are cores."""
    if axis != "threads":
        return (QUICK if quick else VALUES)[axis]
    cores = os.cpu_count() or 1
    between = () if quick else (2**i for i in range(cores.bit_length()) if 2**i < cores)
    return tuple(sorted({1, *between, cores}))


def as_dict(point: Point, rows: list[Row], past: dict[str, Past]) -> dict[str, Any]:
    """A result file's. A row that was not measured has what it would have taken by the two points before it."""
    w = point.workload
    consolidates = point.op == "consolidate"
    return {
        "axis": point.axis,
        "value": point.value,
        "op": point.op,
        "workload": w.name,
        "objects": point.objects,
        "tokens": w.candidates if consolidates else w.tokens,
        "queries": w.prototypes if consolidates else w.queries,
        "top_k": w.top_k if point.op == "read" else None,
        "threads": point.threads,
        "dtype": "float32",
        "device": "cpu",
        "rows": [row.as_dict() | _beyond(point, row, past.get(row.peer, [])) for row in rows],
    }


def _beyond(point: Point, row: Row, past: Past) -> dict[str, float]:
    if row.median is not None or len(past) < 2 or point.axis == "threads":
        return {}
    return {"extrapolated_seconds": predicted(point, past)}


def told(point: Point, row: Row) -> str:
    place = f"{point.op:11} {point.axis} = {point.value:>9,}  {row.peer:14}"
    if row.median is None:
        return f"{place} {row.reason}"
    extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:9.1f} MB"
    return f"{place} {1e3 * row.median:10.2f} ms +- {100 * row.spread:3.0f} %  {extra}  {row.reason}".rstrip()


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--axis", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--quick", action="store_true", help="the top-k read alone, from a small memory")
    parser.add_argument("--budget", type=positive, metavar="SECONDS", help="end within so many; say what is left out")
    parser.add_argument("--gb", type=positive, help="most memory of a point; by default half of what is free")
    parser.add_argument("--seconds", type=positive, help="a point is left out whose call would take longer")
    parser.add_argument("--threads", type=count)
    parser.add_argument("--save", type=result_file, metavar="FILE", help="append the results to a file, a line of JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    limits = Limits(options.gb * 1e9 if options.gb else default_bytes())
    if options.quick:
        limits = replace(limits, seconds=1.2, rounds=3, budget=0.25)
    if options.seconds:
        limits = replace(limits, seconds=options.seconds)
    with record.kept("scaling", options.save) as results:
        measure(options.axis, limits, quick=options.quick, budget=options.budget, results=results)


if __name__ == "__main__":
    main()
