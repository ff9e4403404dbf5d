"""The tables of one machine's results as text, for the page, the README and the terminal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from xmemk.benchmarks.peers.workloads import FRAME_OPS, UPKEEP
from xmemk.benchmarks.report.formatting import counted, duration, exponent, figure, number, percent, size, times
from xmemk.benchmarks.report.result_files import MachineResults
from xmemk.benchmarks.report.schema import FEWEST_FOR_SPREAD, CaseResult, Claim, Measurement, Source, VideoTrack

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
MAIN_CASE = ("memory_read", "480p-full", 1)  # stands for the whole
SAME = 1.05  # ratios nearer to one than this are called equal
ON_AMD = (
    "The processor is AMD's. MKL, torch's library for products, takes a slow path there: peers that multiply "
    "by it are slowed, our C++ is not (benchmarks/notes/cpu-read.md). Elsewhere the ratios may be smaller."
)


class Table(NamedTuple):
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
    return f"{label(case.op)} ({', '.join(filter(None, (case.workload, objects_of(case), dtype, case.setting)))})"


def sizes(case: CaseResult) -> str:
    """24,580 tokens, 1,620 queries, k = 30."""
    noun = ("prototype",) if case.op == "consolidate" else ("query", "queries")
    parts = [counted(case.tokens, "token")] if case.tokens else []
    parts += [counted(case.queries, *noun)] if case.queries else []
    return ", ".join([*parts, *([f"k = {case.top_k}"] if case.top_k else [])])


def main_case(machine: MachineResults) -> CaseResult | None:
    """The case nearest to MAIN_CASE that has our time and another's."""
    usable = [case for case in machine.cases if case.ours and case.rivals]
    return max(usable, key=lambda c: [a == b for a, b in zip((c.op, c.workload, c.objects), MAIN_CASE)], default=None)


def compared(case: CaseResult, row: Measurement | None) -> str:
    """150 ms (3.5)."""
    ratio = case.ratio(row) if row else None
    return "" if row is None else duration(row.median) + ("" if ratio is None else f" ({times(ratio)})")


def place(source: Source | None) -> str:
    return source.place if source else ""


def summary(cases: Iterable[CaseResult]) -> Table:
    """Our time in each case, the fastest other way to a whole result, and the two usual ones."""
    rows = []
    for case in cases:
        fastest, tidy, original = next(iter(case.rivals), None), case.row(*TIDY), case.row(*ORIGINAL)
        memory = ", ".join(size(row.extra_bytes if row else None) or "-" for row in (case.ours, tidy, original))
        rows.append((
            title(case),
            duration(case.ours.median) if case.ours else "-",
            f"{fastest.peer}: {compared(case, fastest)}" if fastest else "",
            compared(case, tidy),
            compared(case, original),
            "" if memory == "-, -, -" else memory,
            place(case.source),
        ))  # fmt: skip
    columns = ("", "xmemk", "fastest other way", "tidy", "original", "memory: xmemk, tidy, original", "line")
    about = "In brackets: how many times xmemk's time. Memory: what a call takes beyond its inputs."
    return Table("Beside the others", columns, "lrlrrll", rows, about)


def claims(found: Iterable[Claim]) -> Table:
    rows = []
    for c in found:
        measured = "nothing" if c.measured is None else f"{number(c.measured)} {c.unit}".strip()
        holds = {True: "yes", False: "no", None: "not decided"}[c.holds]
        rows.append((c.claim, c.paper, measured, holds, c.how, place(c.source)))
    return Table("The paper's claims", ("claim", "paper", "measured", "holds", "how", "line"), "lrrlll", rows)


def tracks(found: Iterable[VideoTrack]) -> Table:
    """First and last point of each method along a video."""
    rows = []
    for track in found:
        ends = [track.points[0], track.points[-1]] if track.points else []
        cells = [
            " to ".join(dict.fromkeys(text for point in ends if (text := show(point))))
            for show in (
                lambda p: f"{p['frame']:,}",
                lambda p: size(p.get("bytes")),
                lambda p: duration(p.get("seconds")),
                lambda p: figure(p["quality"]) if p.get("quality") else "",
            )
        ]
        rows.append((track.method, track.grid, *cells, track.reason, place(track.source)))
    columns = ("along a video", "tokens of a frame", "frames", "memory", "time of a frame", "J", "why it ends", "line")
    return Table("Along a video", columns, "lrrrrrll", rows)


def figures(case: CaseResult) -> Table:
    """Everybody's figures in one case."""
    on_gpu = any(row.device_seconds is not None for row in case.timed)
    columns = ["who", "device", "cold", "launch"] if on_gpu else ["who", "median"]
    columns += ["spread", "rounds", "times ours", "of the roof", "extra memory", "error", "result"]
    rows = []
    for row in case.timed:
        cells = [row.peer, duration(row.median)]
        cells += [duration(row.cold_seconds), duration(row.host_seconds)] if on_gpu else []
        cells += [percent(row.spread or None), str(len(row.seconds)), times(case.ratio(row))]
        cells += [percent(case.of_roof(row)) if row.whole or row.ours else "", size(row.extra_bytes)]
        rows.append([*cells, exponent(row.error), row.kind])
    about = [sizes(case), f"{figure(case.flops / 1e9)} GFLOP" if case.flops else ""]
    about += [f"{size(case.bytes)} at least to be moved" if case.bytes else "", place(case.source)]
    about += [case.source.run.date, case.source.run.commit] if case.source else []
    ours = [i for i, row in enumerate(case.timed) if row is case.ours]
    slowest = max((row.median or 0.0 for row in case.timed), default=0.0) or 1.0
    bars = [(row.median or 0.0) / slowest for row in case.timed]
    align = "l" + "r" * (len(columns) - 2) + "l"
    return Table(title(case), columns, align, rows, ", ".join(filter(None, about)), ours, bars)


def growth(machine: MachineResults) -> Table:
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
    return Table("Growth", columns, "lllrrll", rows, about)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of x that y grows with, by least squares; None for fewer than three points."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    return statistics.linear_regression(*zip(*logs)).slope if len({x for x, _ in logs}) > 2 else None


def curve_points(machine: MachineResults) -> Table:
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
    return Table("All points of the curves", columns, "llrlrrrrrl", rows, ours=ours)


def track_points(machine: MachineResults) -> Table:
    rows = [
        [track.protocol, track.method, track.grid, f"{p['frame']:,}", duration(p.get("seconds")), size(p.get("bytes")),
         size(p.get("peak_bytes")), f"{p.get('tokens', 0):,}", figure(p["quality"]) if p.get("quality") else ""]
        for track in machine.tracks for p in track.points
    ]  # fmt: skip
    ours = [i for i, row in enumerate(rows) if row[1] == "xmemk"]
    columns = ["protocol", "method", "tokens of a frame", "frame", "time of a frame", "memory"]
    columns += ["more at the peak of a read", "tokens", "J"]
    return Table("All points along a video", columns, "llrrrrrrr", rows, ours=ours)


def reasons(machine: MachineResults) -> Table:
    """Who could not run, and remarks: each reason once, with the cases that it is of."""
    where: dict[tuple[str, str], list[str]] = {}
    for case in (*machine.cases, *machine.scaling):
        at = f"{case.axis} = {case.value:,.0f}, {label(case.op)}" if case.axis else title(case)
        for row in case.rows:
            if row.reason:
                where.setdefault((row.peer, row.reason), []).append(at)
    rows = [(peer, "; ".join(dict.fromkeys(cases)), reason) for (peer, reason), cases in where.items()]
    return Table("Who could not run, and remarks", ("who", "where", "why"), "lll", rows)


def machine_words(machine: MachineResults) -> Table:
    """The machine in words, and how fast it was seen to be."""
    words = dict(machine.machine)
    for source in machine.sources:
        if source.run.roof:
            gflops, gbytes = (figure(source.run.roof[name]) for name in ("gflops", "gbytes_per_s"))
            words["measured best"] = f"{gflops} GFLOP/s multiplying, {gbytes} GB/s copying"
    return Table("The machine", ("", ""), "ll", list(words.items()))


def runs(machine: MachineResults) -> Table:
    rows = [(s.place, s.run.date, s.run.commit, s.run.command or "not recorded") for s in machine.sources]
    return Table("Where each figure comes from", ("line", "date", "commit", "command"), "llll", rows)


def limits(machine: MachineResults) -> Table:
    """What a reader may not take from the figures."""
    return Table("What the figures do not say", ("", ""), "ll", list(_limits(machine)))


def _limits(machine: MachineResults) -> Iterator[tuple[str, str]]:
    cases, both = machine.cases, (*machine.cases, *machine.scaling)
    devices = {case.device.split(":")[0] for case in both}
    kinds = {"cpu": "its CPU alone, no GPU", "cuda": "its GPU alone, no CPU"}
    alone = kinds[next(iter(devices))] if len(devices) == 1 else "CPU and GPU"
    yield "machine", f"One machine, {machine.name}, {alone}. On another, ratios can differ and even turn round."
    if on_amd(machine):
        yield "products", ON_AMD
    if any(case.op not in FRAME_OPS for case in both):
        yield (
            "inputs",
            (
                "Random numbers, the same for all peers. Real features have ties and clusters, which can change the time "
                "of a selection."
            ),
        )
    if any(track.protocol == "fig5" for track in machine.tracks):
        yield (
            "quality",
            (
                "J along a video is that of the demo's hand-made features on the bundled clip: it shows what the rules of "
                "the memories do to the same features, not what XMem scores."
            ),
        )
    timed = [(row, case) for case in cases for row in case.timed]
    if timed:
        rounds = [len(row.seconds) for row, _ in timed]
        chain = "each the mean of a chain of calls (on a CPU the median of three chains of short calls)"
        yield (
            "rounds",
            f"Medians of {min(rounds)} to {max(rounds)}, {chain}; fewer than five: {sum(n < 5 for n in rounds)}",
        )
    spread = [(row.spread, row.peer, title(case)) for row, case in timed if len(row.seconds) >= FEWEST_FOR_SPREAD]
    if spread:
        share, peer, where = max(spread)
        yield "widest spread", f"{percent(share)} ({peer}, {where}): differences below it are noise there"
    never = {row.peer for case in cases for row in case.rows} - {row.peer for row, _ in timed}
    if never:
        yield "timed in no case", f"{', '.join(sorted(never))}; the reasons are given below"
    without = [title(case) for case in cases if case.ours is None]
    if without:
        yield "no time of xmemk", "; ".join(without)
    for case in cases:
        first = next((row for row in case.rows if row.ours), None)
        if case.ours and first and case.ours is not first:
            yield f"xmemk in {title(case)}", f"is {case.ours.peer}: {first.peer} has no time there"
    wrong = sorted({f"{row.peer} in {title(case)}" for row, case in timed if row.status == "WRONG"})
    if wrong:
        yield "wrong results", f"{'; '.join(wrong)}: not compared with"
    unknown = {case.tested for case in cases if case.tested is not True}
    if unknown:
        yield "not tested first", "; ".join(sorted(x if isinstance(x, str) else "not recorded" for x in unknown))
    commits = {source.run.commit for source in machine.sources}
    if len(machine.sources) > 1:
        days = sorted({source.run.date for source in machine.sources})
        several = f"{len(machine.sources)} runs, {days[0]} to {days[-1]}, {counted(len(commits), 'commit')}"
        yield "runs", f"{several}. Compare within a table, where everybody took turns, not between tables."
    changed = sorted(commit for commit in commits if "dirty" in commit)
    if changed:
        yield "changed files", f"{', '.join(changed)}: the files differed from the commit"
    parts = {"functions": cases, "growth with the sizes": machine.scaling, "length of a video": machine.tracks,
             "the paper's claims": machine.claims}  # fmt: skip
    absent = [name for name, found in parts.items() if not found]
    if absent:
        yield "not measured", ", ".join(absent)


def on_amd(machine: MachineResults) -> bool:
    on_cpu = any(case.device == "cpu" for case in (*machine.cases, *machine.scaling))
    return on_cpu and "AMD" in machine.machine.get("processor", "")
