"""The tables of one machine's results as text, for the page, the README and the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from xmemk.benchmarks.peers.workloads import FRAME_OPS, UPKEEP
from xmemk.benchmarks.report.formatting import counted, duration, exponent, figure, number, percent, size, times
from xmemk.benchmarks.report.result_files import MachineResults
from xmemk.benchmarks.report.schema import CaseResult, Claim, Measurement, Result, VideoTrack

LABELS = {
    "memory_read": "memory_read top-k",
    "memory_read_dense": "memory_read dense",
    "memory_read_train": "memory_read top-k, train",
    "memory_read_backward": "memory_read top-k, backward",
    "memory_read_dense_train": "memory_read dense, train",
    "memory_read_dense_backward": "memory_read dense, backward",
    "frame": "whole frame",
    "memory_frame": "whole memory frame",
    "video": "whole video",
}
AXES = {"N": "memory tokens", "Q": "queries", "O": "objects", "k": "k", "threads": "threads"}
TIDY, ORIGINAL = ("tidy PyTorch",), ("original", "original (threshold)")
ON_AMD = (
    "The processor is AMD's. MKL, torch's library for products, takes a slow path there: peers that multiply "
    "by it are slowed, our C++ is not (benchmarks/notes/cpu-read.md). Elsewhere the ratios may be smaller."
)
INPUTS = (
    "Random numbers, the same for all peers. Real features have ties and clusters, which can change the time of "
    "a selection."
)
QUALITY = (
    "J along a video is that of the demo's hand-made features on the bundled clip: it shows what the rules of the "
    "memories do to the same features, not what XMem scores."
)
CHAINS = "each the mean of a chain of calls (on a CPU the median of three chains of short calls)"


class ReportTable(NamedTuple):
    """align: l or r of each column. ours: emphasised rows. bars: shares, for second cells."""

    title: str
    columns: Sequence[str]
    align: str
    rows: Sequence[Sequence[str]]
    about: str = ""
    ours: Sequence[int] = ()
    bars: Sequence[float] = ()


def label(op: str) -> str:
    return LABELS.get(op, op)


def objects_of(case: CaseResult) -> str:
    return "" if case.op in UPKEEP else counted(case.objects, "object")


def title(case: CaseResult) -> str:
    """memory_read top-k (480p-full, 5 objects)."""
    dtype = "" if case.dtype == "float32" else case.dtype
    point = f"{case.axis} = {case.value:,.0f}" if case.axis else ""
    details = filter(None, (case.workload, objects_of(case), dtype, case.setting, point))
    return f"{label(case.op)} ({', '.join(details)})"


def sizes(case: CaseResult) -> str:
    """24,580 tokens, 1,620 queries, k = 30."""
    noun = ("prototype",) if case.op == "consolidate" else ("query", "queries")
    parts = [counted(case.tokens, "token")] if case.tokens else []
    parts += [counted(case.queries, *noun)] if case.queries else []
    return ", ".join([*parts, *([f"k = {case.top_k}"] if case.top_k else [])])


def compared(case: CaseResult, row: Measurement | None) -> str:
    """150 ms (3.5)."""
    ratio = case.ratio(row) if row else None
    return "" if row is None else duration(row.median) + ("" if ratio is None else f" ({times(ratio)})")


def place(result: Result) -> str:
    return result.source.place if result.source else ""


def summary(cases: Iterable[CaseResult]) -> ReportTable:
    """Our time in each case, the fastest other way to a whole result, and the two usual ones."""
    rows = []
    for case in (case for case in cases if case.timed):
        fastest, tidy, original = next(iter(case.rivals), None), case.row(*TIDY), case.row(*ORIGINAL)
        memory = ", ".join(size(row.extra_bytes if row else None) or "-" for row in (case.ours, tidy, original))
        rows.append((
            title(case),
            duration(case.ours.median) if case.ours else "-",
            f"{fastest.peer}: {compared(case, fastest)}" if fastest else "",
            compared(case, tidy),
            compared(case, original),
            "" if memory == "-, -, -" else memory,
            place(case),
        ))  # fmt: skip
    columns = ("", "xmemk", "fastest other way", "tidy", "original", "memory: xmemk, tidy, original", "line")
    about = "In brackets: how many times xmemk's time. Memory: what a call takes beyond its inputs."
    return ReportTable("Beside the others", columns, "lrlrrll", rows, about)


def claims(measured: Iterable[Claim]) -> ReportTable:
    rows = []
    for c in measured:
        value = "nothing" if c.measured is None else f"{number(c.measured)} {c.unit}".strip()
        holds = {True: "yes", False: "no", None: "not decided"}[c.holds]
        rows.append((c.claim, c.paper, value, holds, c.how, place(c)))
    return ReportTable("The paper's claims", ("claim", "paper", "measured", "holds", "how", "line"), "lrrlll", rows)


def tracks(measured: Iterable[VideoTrack]) -> ReportTable:
    """First and last point of each method along a video."""
    rows = []
    for track in (track for track in measured if track.points):
        ends = (track.points[0], track.points[-1])
        cells = [
            " to ".join(dict.fromkeys(text for point in ends if (text := show(point))))
            for show in (
                lambda p: f"{p['frame']:,}",
                lambda p: size(p.get("bytes")),
                lambda p: duration(p.get("seconds")),
                lambda p: figure(p["quality"]) if p.get("quality") else "",
            )
        ]
        rows.append((track.method, track.grid, *cells, track.reason, place(track)))
    columns = ("along a video", "tokens of a frame", "frames", "memory", "time of a frame", "J", "why it ends", "line")
    return ReportTable("Along a video", columns, "lrrrrrll", rows)


def figures(case: CaseResult) -> ReportTable:
    """Everybody's figures in one case."""
    on_gpu = any(row.device_seconds is not None for row in case.timed)
    columns = ["who", "device", "cold", "launch"] if on_gpu else ["who", "median"]
    columns += ["spread", "rounds", "times ours", "of the roof", "extra memory", "error", "result"]
    rows = []
    for row in case.timed:
        cells = [row.peer, duration(row.median)]
        cells += [duration(row.cold_seconds), duration(row.host_seconds)] if on_gpu else []
        cells += [percent(row.spread or None), str(len(row.seconds)), times(case.ratio(row))]
        cells += [percent(row.of_roof), size(row.extra_bytes)]
        rows.append([*cells, exponent(row.error), row.kind])
    about = [sizes(case), f"{figure(case.flops / 1e9)} GFLOP" if case.flops else ""]
    about += [f"{size(case.bytes)} at least to be moved" if case.bytes else "", place(case)]
    about += [case.source.run.date, case.source.run.commit] if case.source else []
    ours = [i for i, row in enumerate(case.timed) if row is case.ours]
    slowest = max((row.median or 0.0 for row in case.timed), default=0.0) or 1.0
    bars = [(row.median or 0.0) / slowest for row in case.timed]
    align = "l" + "r" * (len(columns) - 2) + "l"
    return ReportTable(title(case), columns, align, rows, ", ".join(filter(None, about)), ours, bars)


def growth(machine: MachineResults) -> ReportTable:
    """The power of the axis that our time grows with; the fastest other at both ends."""
    rows = []
    for curve in machine.curves:
        cases = [case for case in curve if case.ours]
        power = slope([(c.value, c.ours.median or 0.0) for c in cases if c.ours])
        if power is not None:
            ends = [f"{r.peer}: {times(c.ratio(r))}" if (r := next(iter(c.rivals), None)) else "no other has a time"
                    for c in (cases[0], cases[-1])]  # fmt: skip
            span = f"{number(cases[0].value)} to {number(cases[-1].value)}"
            rows.append((label(curve[0].op), curve[0].workload, AXES[curve[0].axis], span, f"{power:.2f}", *ends))
    columns = ("function", "workload", "axis", "from, to", "power", "fastest other at the first", "at the last")
    about = "Our time grows about as this power of the axis; then how many times our time the fastest other takes."
    return ReportTable("Growth", columns, "lllrrll", rows, about)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of x that y grows with, by least squares; None for fewer than three points."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    return statistics.linear_regression(*zip(*logs)).slope if len({x for x, _ in logs}) > 2 else None


def curve_points(machine: MachineResults) -> ReportTable:
    rows: list[list[str]] = []
    ours = []
    for case in machine.scaling:
        for row in case.rows:
            cells = [AXES.get(case.axis, case.axis), label(case.op), number(case.value), row.peer]
            ours += [len(rows)] if row is case.ours else []
            if row.seconds:
                cells += [duration(row.median), percent(row.spread or None), times(case.ratio(row))]
                rows.append([*cells, size(row.extra_bytes), exponent(row.error), ""])
            elif row.extrapolated_seconds:
                remark = f"extrapolated, not measured: {row.reason}"
                rows.append([*cells, duration(row.extrapolated_seconds), "", "", "", "", remark])
    columns = ("axis", "function", "value", "who", "median", "spread", "times ours", "extra memory", "error", "")
    return ReportTable("All points of the curves", columns, "llrlrrrrrl", rows, ours=ours)


def track_points(tracks: Iterable[VideoTrack]) -> ReportTable:
    rows = [
        [track.protocol, track.method, track.grid, f"{p['frame']:,}", duration(p.get("seconds")), size(p.get("bytes")),
         size(p.get("peak_bytes")), f"{p.get('tokens', 0):,}", figure(p["quality"]) if p.get("quality") else ""]
        for track in tracks for p in track.points
    ]  # fmt: skip
    ours = [i for i, row in enumerate(rows) if row[1] == "xmemk"]
    columns = ["protocol", "method", "tokens of a frame", "frame", "time of a frame", "memory"]
    columns += ["more at the peak of a read", "tokens", "J"]
    return ReportTable("All points along a video", columns, "llrrrrrrr", rows, ours=ours)


def reasons(machine: MachineResults) -> ReportTable:
    """Who could not run, and remarks: each reason once, with the cases that it is of."""
    where: dict[tuple[str, str], list[str]] = {}
    for case in (*machine.cases, *machine.scaling):
        for row in case.rows:
            if row.reason:
                where.setdefault((row.peer, row.reason), []).append(title(case))
    rows = [(peer, "; ".join(dict.fromkeys(cases)), reason) for (peer, reason), cases in where.items()]
    return ReportTable("Who could not run, and remarks", ("who", "where", "why"), "lll", rows)


def machine_words(machine: MachineResults) -> ReportTable:
    """The machine in words, and how fast it was seen to be."""
    words = dict(machine.machine)
    for source in machine.sources:
        if source.run.roof:
            gflops, gbytes = (figure(source.run.roof[name]) for name in ("gflops", "gbytes_per_s"))
            words["measured best"] = f"{gflops} GFLOP/s multiplying, {gbytes} GB/s copying"
    return ReportTable("The machine", ("", ""), "ll", list(words.items()))


def runs(machine: MachineResults) -> ReportTable:
    rows = [(s.place, s.run.date, s.run.commit, s.run.command or "not recorded") for s in machine.sources]
    return ReportTable("Where each figure comes from", ("line", "date", "commit", "command"), "llll", rows)


def limits(machine: MachineResults) -> ReportTable:
    """What a reader may not take from the figures."""
    cases, points = machine.cases, (*machine.cases, *machine.scaling)
    timed = [(row, case) for case in cases for row in case.timed]
    rounds = [len(row.seconds) for row, _ in timed] or [0]
    wrong = sorted({f"{row.peer} in {title(case)}" for row, case in timed if row.status == "WRONG"})
    untested = {c.tested if isinstance(c.tested, str) else "not recorded" for c in cases if c.tested is not True}
    runs = [source.run for source in machine.sources]
    changed = sorted({run.commit for run in runs if "dirty" in run.commit})
    days = sorted({run.date for run in runs})
    rows = (
        (True, "machine", f"One machine, {machine.name}. On another, ratios can differ and even turn round."),
        (on_amd(machine), "products", ON_AMD),
        (any(case.op not in FRAME_OPS for case in points), "inputs", INPUTS),
        (any(track.protocol == "fig5" for track in machine.tracks), "quality", QUALITY),
        (timed, "rounds", f"Medians of {min(rounds)} to {max(rounds)}, {CHAINS}; fewer than five: "
                          f"{sum(n < 5 for n in rounds)}"),
        (wrong, "wrong results", f"{'; '.join(wrong)}: not compared with"),
        (untested, "not tested first", "; ".join(sorted(untested))),
        (len(runs) > 1, "runs", f"{len(runs)} runs, {days[0]} to {days[-1]}. Compare within a table, where everybody "
                                "took turns, not between tables."),
        (changed, "changed files", f"{', '.join(changed)}: the files differed from the commit"),
    )  # fmt: skip
    stated = [(name, text) for holds, name, text in rows if holds]
    return ReportTable("What the figures do not say", ("", ""), "ll", list(dict.fromkeys(stated)))


def on_amd(machine: MachineResults) -> bool:
    on_cpu = any(case.device == "cpu" for case in (*machine.cases, *machine.scaling))
    return on_cpu and "AMD" in machine.machine.get("processor", "")
