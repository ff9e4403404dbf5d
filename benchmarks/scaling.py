"""Time and extra memory of a read against the memory's size N, the queries Q, the objects O, k, and threads.

    python benchmarks/scaling.py [--axis N Q O k threads] [--quick] [--save FILE] [--gb 12] [--seconds 12]

One axis is varied, the rest is that of a named workload (``BASES``). Three peers, ours, tidy PyTorch and the original's
formulation, as far as each fits: what a point would take is computed before it is tried, its memory by
``wanted_bytes``, its time from the points before on the same axis, and a point that would take too much is a row with
that reason. Each peer is checked against float64 on some queries and 32 value channels before it is timed; extra
memory is the peak of one call beyond its inputs.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.harness import record
from xmemk.benchmarks.harness.measure import Row, peak_of, time_peers
from xmemk.benchmarks.peers import CHECKED_QUERIES, Call, Peer, peers_of
from xmemk.benchmarks.workloads import WORKLOADS, Case, Workload, make_case

from xmemk import ops
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


def refusal(point: Point, peer: str, past: list[tuple[int, float]], limits: Limits) -> str:
    """Why a point is not tried, or ""; ``past``: values of this axis, ascending, and the seconds this peer took."""
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


def predicted(point: Point, past: list[tuple[int, float]]) -> float:
    """Seconds of a point: on the line through the last two of this axis, or, from one, in proportion to N or Q."""
    at, took = past[-1]
    if len(past) > 1:
        earlier, less = past[-2]
        return max(took, took + (took - less) * (point.value - at) / (at - earlier))
    return took * point.value / at if point.axis in "NQ" else took


def measured(point: Point, limits: Limits, past: dict[str, list[tuple[int, float]]]) -> list[Row]:
    """The rows of one point; ``past``: of each peer what it took at smaller values of this axis, which is added to."""
    torch.set_num_threads(point.threads)
    rows, tried = [], []
    for peer in chosen(point.op):
        reason = refusal(point, peer.name, past.get(peer.name, []), limits)
        rows.append(Row(peer.name, peer.ours, reason=reason))
        if not reason:
            tried.append(peer)
    if tried:
        case = make_case(point.op, point.workload, objects=point.objects)
        peaks = {peer.name: peak(case, peer) for peer in tried}
        checked = [through_check(case, peer) for peer in tried]
        found = {
            row.peer: row for row in time_peers(thinned(case), checked, rounds=limits.rounds, budget=limits.budget)
        }
        for row in found.values():
            row.extra_bytes = peaks[row.peer] if row.median is not None else None
        rows = [found.get(row.peer, row) for row in rows]
        del case, checked
        gc.collect()
    for row in rows:
        if row.median is not None:
            past.setdefault(row.peer, []).append((point.value, row.median))
    return rows


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
    axes: list[str], limits: Limits, *, quick: bool = False, said: Callable[[str], None] = say
) -> list[dict[str, Any]]:
    """The results along these axes, as result files have them; ``said`` gets a line for each row."""
    given = torch.get_num_threads()
    results = []
    try:
        for axis in axes:
            past: dict[str, dict[str, list[tuple[int, float]]]] = {}
            for point in points(axis, given, quick=quick):
                rows = measured(point, limits, past.setdefault(point.op, {}))
                results.append(as_dict(point, rows))
                for row in rows:
                    said(told(point, row))
    finally:
        torch.set_num_threads(given)
    return results


def values_of(axis: str, quick: bool) -> tuple[int, ...]:
    """Threads: 1, 2, 4, ... and as many as there are cores."""
    if axis != "threads":
        return (QUICK if quick else VALUES)[axis]
    cores = os.cpu_count() or 1
    between = () if quick else (2**i for i in range(cores.bit_length()) if 2**i < cores)
    return tuple(sorted({1, *between, cores}))


def as_dict(point: Point, rows: list[Row]) -> dict[str, Any]:
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
        "rows": [{**row.as_dict(), "spread": row.spread} for row in rows],
    }


def told(point: Point, row: Row) -> str:
    place = f"{point.op:11} {point.axis} = {point.value:>9,}  {row.peer:14}"
    if row.median is None:
        return f"{place} {row.reason}"
    extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 1e6:9.1f} MB"
    return f"{place} {1e3 * row.median:10.2f} ms +- {100 * row.spread:3.0f} %  {extra}  {row.reason}".rstrip()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--quick", action="store_true", help="the top-k read alone, from a small memory")
    parser.add_argument("--gb", type=float, help="most memory of a point; by default half of what is free")
    parser.add_argument("--seconds", type=float, help="a point is left out whose call would take longer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--save", type=Path, metavar="FILE", help="append the results to a file, as one line of JSON")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    limits = Limits(options.gb * 1e9 if options.gb else default_bytes())
    if options.quick:
        limits = replace(limits, seconds=1.2, rounds=3, budget=0.25)
    if options.seconds:
        limits = replace(limits, seconds=options.seconds)
    for axis in options.axis:  # a line each, so that what is measured is kept whatever comes after
        record.save(record.line("scaling", measure([axis], limits, quick=options.quick)), options.save)


if __name__ == "__main__":
    main()
