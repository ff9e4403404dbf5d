"""What the README opens with: three figures, and a chart of one read beside the others.

The chart is plain SVG in the colours of one scheme, since pages that show a README know no CSS of
ours.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

from xmemk.benchmarks.report import tables
from xmemk.benchmarks.report.formatting import counted, duration, size, times
from xmemk.benchmarks.report.result_files import MachineResults
from xmemk.benchmarks.report.schema import CaseResult, Measurement

READ = ("memory_read", "1080p-full", 1)
FRAME = ("frame", "full", 1)
WIDTH, LEFT, ROW = 760, 172, 30


class Scheme(NamedTuple):
    ink: str
    soft: str
    ours: str
    other: str


SCHEMES = {
    "light": Scheme("#1f2328", "#59636e", "#0b62a4", "#c9c3b6"),
    "dark": Scheme("#f0f6fc", "#9198a1", "#5db3f2", "#565b63"),
}
NAMES = {
    "original": "released formulation",
    "tidy PyTorch": "short plain PyTorch",
    "faiss, embedding_bag": "faiss + embedding_bag",
}


def machine_of(machines: list[MachineResults]) -> MachineResults:
    """The first machine with both cases. ValueError where none has them."""
    for machine in machines:
        if all((case := machine.case(*known)) and case.ours for known in (READ, FRAME)):
            return machine
    raise ValueError(f"no machine in the result files has {' and '.join(' '.join(map(str, k)) for k in (READ, FRAME))}")


def lines(machine: MachineResults) -> Iterator[str]:
    """The three figures as a table in Markdown, and where they are from."""
    read, frame = _case(machine, READ), _case(machine, FRAME)
    ours, original = _rows(read)
    frame_ours, frame_original = _rows(frame)
    best = read.rivals[0]
    yield "| | one XMem memory read or frame, with the memory full |"
    yield "|---|---|"
    yield (
        f"| **{times(read.ratio(original))} times as fast** | a read at 1080p: "
        f"{duration(ours.median)}; the released code's formulation takes {duration(original.median)}, "
        f"the fastest other way to the same result ({best.peer}) {duration(best.median)} |"
    )
    yield (
        f"| **{size(ours.extra_bytes)}, not {size(original.extra_bytes)}** | what that read takes beyond its inputs |"
    )
    yield (
        f"| **{times(frame.ratio(frame_original))} times as fast** | a whole frame at 480p, "
        f"XMem's network included: {duration(frame_ours.median)} against {duration(frame_original.median)} |"
    )
    yield ""
    run = read.source.run if read.source else None
    day = run.date.split()[0] if run else ""
    about = (
        f"Medians of {day} on {machine.name}, {counted(read.threads, 'thread')}, {read.dtype}. "
        f"{tables.ON_AMD if tables.on_amd(machine) else ''}"
    )
    yield textwrap.fill(about.strip(), width=100, break_on_hyphens=False)


def chart(machine: MachineResults, scheme: str) -> str:
    """Bars of time and memory of one read as SVG. scheme: "light" or "dark"."""
    colours, case = SCHEMES[scheme], _case(machine, READ)
    named = {row.peer: row for row in case.timed}
    shown = [row for row in (case.ours, *map(named.get, reversed(NAMES))) if row is not None]
    parts: list[str] = []

    def text(x: float, y: float, words: str, colour: str, extra: str = "") -> None:
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" {extra}>{html.escape(words)}</text>')

    text(0, 16, "One memory read at 1080p", colours.ink, 'font-size="15" font-weight="600"')
    text(0, 36, f"{case.tokens:,} tokens x {case.queries:,} queries, top-k {case.top_k}; {machine.name}, "
         f"{counted(case.threads, 'thread')}, {case.dtype}", colours.soft)  # fmt: skip
    panels: tuple[tuple[str, Callable[[Measurement], float], Callable[[float], str]], ...] = (
        ("time", lambda row: row.median or 0.0, duration),
        ("memory beyond its inputs", lambda row: row.extra_bytes or 0.0, size),
    )
    room = (WIDTH - LEFT) / 2
    for i, row in enumerate(shown):
        strong = 'font-weight="600"' if row.ours else ""
        words = "xmemk" if row.ours else NAMES[row.peer]
        text(LEFT - 10, 90 + i * ROW, words, colours.ink, f'text-anchor="end" {strong}')
    for at, (title, value, written) in enumerate(panels):
        left, most = LEFT + at * room, max(map(value, shown))
        text(left, 64, title, colours.soft)
        for i, row in enumerate(shown):
            width = max(2.0, (room - 84) * value(row) / most)
            fill = colours.ours if row.ours else colours.other
            y = 76 + i * ROW
            parts.append(f'<rect x="{left:.0f}" y="{y}" width="{width:.1f}" height="18" rx="2" fill="{fill}"/>')
            bold = 'font-weight="600"' if row.ours else ""
            text(left + width + 6, y + 14, written(value(row)), colours.ink, bold)
    height = 84 + ROW * len(shown)
    about = "; ".join(f"{row.peer}: {duration(row.median)}, {size(row.extra_bytes)}" for row in shown)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="13" role="img">'
    )
    return "\n".join([head, f"<title>{html.escape(about)}</title>", *parts, "</svg>", ""])


def _case(machine: MachineResults, known: tuple[str, str, int]) -> CaseResult:
    case = machine.case(*known)
    assert case is not None  # machine_of looked
    return case


def _rows(case: CaseResult) -> tuple[Measurement, Measurement]:
    """Ours, and the released code's formulation."""
    ours, original = case.ours, case.row(*tables.ORIGINAL)
    if ours is None or original is None or not ours.median or not original.median:
        raise ValueError(f"{case.op} {case.workload}: wanted times of xmemk and of {' or '.join(tables.ORIGINAL)}")
    return ours, original
