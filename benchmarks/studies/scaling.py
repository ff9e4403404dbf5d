"""Time and extra memory of a read against the memory's size N, the queries Q, the objects O, k, and
threads.

    python benchmarks/studies/scaling.py [--axis N Q O k threads] [--quick]
        [--budget SECONDS] [--save FILE] [--gb 12]

One axis is varied, the rest is that of a named workload (``BASES``). Three peers are measured as
far as each fits: ours, tidy PyTorch and the original's formulation. What a point would take is
computed before it is tried, its memory by ``needed_bytes``, its time from the points before on the
same axis. A point that would take too much is a row with that reason, and with
"extrapolated_seconds" where two points came before it. With --budget all curves share the seconds.
Each peer is compared with float64 on some queries and 32 value channels before it is timed. Extra
memory is the peak of one call beyond its inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from xmemk.benchmarks.harness import arguments, record
from xmemk.benchmarks.harness.processes import peak_of
from xmemk.benchmarks.harness.timing import CHAIN_SECONDS, available_bytes, time_peers
from xmemk.benchmarks.peers.catalogue import CHECKED_QUERIES, Peer, peers_of
from xmemk.benchmarks.peers.verdicts import verdict
from xmemk.benchmarks.peers.workloads import READS, WORKLOADS, OpCase, Workload, make_case, sizes_of
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import NOT_REACHED, CaseResult, Measurement

from xmemk import operators
from xmemk.testing import Comparison

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
# N x Q matrices that the formulations of the others hold at once.
MATRICES = {"tidy PyTorch": 2, "original": 5}
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


class Point(CaseResult):
    """One op at one place of an axis: its result, without rows as yet, and its workload."""

    of: Workload


def curves(axis: str, threads: int, quick: bool) -> Iterator[list[Point]]:
    """Op by op, from small to large."""
    base = WORKLOADS[QUICK_BASE if quick else BASES[axis]]
    for op in ("memory_read",) if quick else OPS[axis]:
        curve = []
        for value in values_of(axis, quick):
            sizes: dict[str, Any] = {
                "N": {"tokens": value, "candidates": value, "prototypes": min(base.prototypes, value)},
                "Q": {"queries": value},
                "k": {"top_k": value},
            }.get(axis, {})
            objects, used = value if axis == "O" else 1, value if axis == "threads" else threads
            w = replace(base, **sizes)
            point = Point(op, w.name, objects, "float32", "cpu", used, axis=axis, value=value)
            vars(point).update(sizes_of(op, w), of=w)
            curve.append(point)
        yield curve


def values_of(axis: str, quick: bool) -> tuple[int, ...]:
    """Threads: 1, 2, 4, ... and as many as there are cores."""
    if axis != "threads":
        return (QUICK if quick else VALUES)[axis]
    cores = os.cpu_count() or 1
    between = () if quick else (2**i for i in range(cores.bit_length()) if 2**i < cores)
    return tuple(sorted({1, *between, cores}))


def needed_bytes(point: Point, peer: str) -> int:
    """About what a point takes at its peak: its inputs (keys, selections, values, shrinkage, usage,
    queries), for others a copy of them and N x Q matrices, or what the check holds in float64 (some
    ten [N, 40] matrices and the keys)."""
    w, n, q = point.of, point.tokens or 0, point.queries or 0
    inputs = 4 * (n * (2 * w.key_channels + point.objects * w.value_channels + 2) + 2 * q * w.key_channels)
    call = inputs + 4 * MATRICES[peer] * n * q if peer in MATRICES else OUR_BYTES
    checked = w.prototypes if point.op == "consolidate" else CHECKED_QUERIES
    check = 8 * n * (3 * w.key_channels + 3 * CHECKED_CHANNELS + 10 * checked)
    return inputs + 4 * q * point.objects * w.value_channels + max(call, check)


Past = list[tuple[float, float]]  # values of an axis, ascending, and the seconds that a peer took there


def refusal(point: Point, peer: str, past: Past, limits: PointLimits, left: float = math.inf) -> str:
    """Why a point is not tried with so many seconds ``left``, or ""."""
    needed, seconds = needed_bytes(point, peer), predicted(point, past)
    if needed > limits.bytes:
        return f"would take {needed / 1e9:.1f} GB, more than {limits.bytes / 1e9:.3g}"
    if seconds > limits.seconds:
        at, took = past[-1]
        return f"would take {seconds:.1f} s ({took:.1f} s at {point.axis} = {at:,.0f}), more than {limits.seconds:g}"
    return NOT_REACHED if left <= needed_seconds(seconds, limits) else ""


def predicted(point: Point, past: Past) -> float:
    """Seconds of a call, on the line through the last two of this axis, or, from one, in proportion
    to N or Q; 0 where nothing is known."""
    if not past or point.axis == "threads":
        return 0.0
    at, took = past[-1]
    if len(past) > 1:
        earlier, less = past[-2]
        return max(took, took + (took - less) * (point.value - at) / (at - earlier))
    return took * point.value / at if point.axis in "NQ" else took


def needed_seconds(call: float, limits: PointLimits) -> float:
    """Twice for its peak, twice to be checked and warm, and the rounds."""
    return call and 4 * call + max(call, min(limits.budget, limits.rounds * max(call, CHAIN_SECONDS["cpu"])))


def measure_point(point: Point, limits: PointLimits, past: dict[str, Past], until: float | None = None) -> None:
    """The rows of one point; ``past``: of each peer what it took at smaller values of this axis,
    which is added to.

    A peer that would not be done by ``until`` (of time.time) is not begun.
    """
    torch.set_num_threads(point.threads)
    rows: dict[str, Measurement] = {}
    tried = []
    left = math.inf if until is None else until - time.time()
    for peer in chosen(point.op):
        known = past.setdefault(peer.name, [])
        rows[peer.name] = row = Measurement(peer.name, peer.ours)
        row.reason = refusal(point, peer.name, known, limits, left)
        if not row.reason:
            tried.append(peer)
            left -= needed_seconds(predicted(point, known), limits)
    rows |= {row.peer: row for row in time_point(point, tried, limits)}
    gc.collect()
    for row in rows.values():
        known = past[row.peer]
        if row.median is not None:
            known.append((point.value, row.median))
        elif len(known) > 1:
            row.extrapolated_seconds = predicted(point, known) or None
    point.rows = list(rows.values())


def time_point(point: Point, peers: list[Peer], limits: PointLimits) -> list[Measurement]:
    """The rows of those that are tried."""
    if not peers:
        return []
    case = make_case(point.op, point.of, objects=point.objects)
    peaks: dict[str, int | None] = {}
    with terminal.progress(f"{point.op}, {point.axis} = {point.value:,}") as tell:
        for peer in peers:
            tell(f"memory of {peer.name}")
            with contextlib.suppress(Exception):  # why it fails, time_peers will say
                peaks[peer.name] = peak_of(case, peer)
        rows = time_peers(case, peers, rounds=limits.rounds, budget=limits.budget, judge=judge, tell=tell)
    for row in rows:
        row.extra_bytes = peaks.get(row.peer) if row.seconds else None
    return rows


def judge(case: OpCase, result: Any) -> Comparison | None:
    """The verdict on some channels of the first object: float64 of all may not fit into memory."""
    x, step = case.inputs, max(1, case.inputs.mv.shape[2] // CHECKED_CHANNELS)
    thinned = OpCase(case.op, case.workload, replace(x, mv=x.mv[:, :1, ::step]))
    values = 2 if case.op == "consolidate" else 0  # where the values are in the result
    cut = (t[:, :1, ::step] if at == values and t is not None else t for at, t in enumerate(result))
    return verdict(thinned, tuple(cut))


def chosen(op: str) -> list[Peer]:
    backend = "torch" if operators.native_error() is not None else "cpu"
    return [peer for peer in peers_of(op, [backend]) if peer.ours or peer.name in MATRICES]


def measure(
    axes: list[str],
    limits: PointLimits,
    *,
    quick: bool = False,
    budget: float | None = None,
    results: list[CaseResult] | None = None,
) -> list[CaseResult]:
    """The results along these axes, also put into ``results`` as they come, and shown.

    ``budget``: seconds for all of it, shared alike by the curves that are still to be measured.
    """
    threads = torch.get_num_threads()
    results = [] if results is None else results
    end = None if budget is None else time.time() + budget
    planned = [curve for axis in axes for curve in curves(axis, threads, quick)]
    try:
        for at, curve in enumerate(planned):
            past: dict[str, Past] = {}
            until = None if end is None else time.time() + (end - time.time()) / (len(planned) - at)
            for point in curve:
                measure_point(point, limits, past, until)
                results.append(point)
                terminal.show_case(point)
    finally:
        torch.set_num_threads(threads)
    return results


def parser() -> argparse.ArgumentParser:
    parser = arguments.study(__doc__, "the top-k read alone, from a small memory")
    parser.add_argument("--axis", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--gb", type=arguments.positive, help="most memory of a point; by default half of what is free")
    parser.add_argument("--seconds", type=arguments.positive, help="a point is left out whose call would take longer")
    return parser


def main(words: list[str] | None = None) -> None:
    options = arguments.parsed(parser(), words)
    # Half of what this machine has free, so that nothing is swapped.
    limits = PointLimits(options.gb * 1e9 if options.gb else 0.5 * (available_bytes() or 2 * UNKNOWN_MEMORY))
    if options.quick:
        limits = replace(limits, seconds=1.2, rounds=3, budget=0.25)
    if options.seconds:
        limits = replace(limits, seconds=options.seconds)
    with record.recorded("scaling", options.save) as results:
        measure(options.axis, limits, quick=options.quick, budget=options.budget, results=results)


if __name__ == "__main__":
    main()
