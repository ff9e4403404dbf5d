"""The report's page: one HTML file that needs no network and no script, its plots inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from xmemk.benchmarks.report import tables
from xmemk.benchmarks.report.formatting import counted, duration, figure, size, times
from xmemk.benchmarks.report.result_files import MachineResults
from xmemk.benchmarks.report.schema import CaseResult, VideoTrack

import xmemk

INK, GRID, OURS, OURS_TOO = "#333333", "#dddddd", "#1257c9", "#6f9bd8"
# Shape and dash tell the lines apart where colour does not.
OTHERS = (
    ("#b3541e", "s", (0, (5, 1.5))),
    ("#7a7a7a", "^", (0, (1.5, 1.2))),
    ("#3c7f4e", "D", (0, (5, 1, 1.5, 1))),
    ("#8a4a93", "v", (0, (3, 3))),
    ("#a08000", "P", "-"),
)
USUAL = ("tidy PyTorch", "original")  # they look the same in every plot
Points = list[tuple[float, float]]


class Plot(NamedTuple):
    """A plot, as an address that holds it, with its words: above, below, and in its place."""

    title: str
    image: str
    caption: str
    words: str


class Line(NamedTuple):
    """A peer's or a method's points; ``beyond``: from the last one on, those not measured."""

    name: str
    ours: bool
    points: Points
    beyond: Points


def write_page(path: Path, machines: list[MachineResults], passed_over: list[str], commands: list[str]) -> None:
    """``commands`` repeat what is shown; ``passed_over`` is what is not shown, and why."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(t=tables, growth=growth_plots, length=length_plots)
    page = environment.get_template("page.html").render(
        machines=machines, passed_over=passed_over, commands=commands, version=xmemk.__version__
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def growth_plots(machine: MachineResults) -> list[Plot]:
    """Time and extra memory of every peer over the values of each axis."""
    plots: list[Plot] = []
    for curve in machine.curves:
        first, axis = curve[0], tables.AXES.get(curve[0].axis, curve[0].axis)
        caption = f"horizontal: {axis}; {fixed(first)}{dated(machine, curve)}"
        seconds, nbytes = curve_lines(curve)
        for quantity, unit, lines in (("time", "seconds", seconds), ("extra memory", "bytes", nbytes)):
            plots += drawn(f"{tables.label(first.op)}: {quantity} against {axis}", caption, lines, unit, "extrapolated")
    return plots


def curve_lines(cases: Sequence[CaseResult]) -> tuple[list[Line], list[Line]]:
    """Seconds and bytes of every peer along an axis; times may go on, extrapolated."""
    seconds: dict[str, Line] = {}
    nbytes: dict[str, Line] = {}
    for case in cases:
        for row in case.rows:
            line = seconds.setdefault(row.peer, Line(row.peer, row.ours, [], []))
            if row.median:
                line.points.append((case.value, row.median))
                line.beyond[:] = line.points[-1:]
                if row.extra_bytes:
                    empty = Line(row.peer, row.ours, [], [])
                    nbytes.setdefault(row.peer, empty).points.append((case.value, row.extra_bytes))
            elif row.extrapolated_seconds and line.points:
                line.beyond.append((case.value, row.extrapolated_seconds))
    return list(seconds.values()), list(nbytes.values())


def fixed(case: CaseResult) -> str:
    """What stays the same along the case's axis."""
    parts = {
        "": case.workload,
        "N": case.tokens and counted(case.tokens, "token"),
        "Q": case.queries and counted(case.queries, "query", "queries"),
        "O": counted(case.objects, "object"),
        "k": case.top_k and f"k = {case.top_k}",
        "threads": counted(case.threads, "thread"),
    }
    return ", ".join(str(part) for axis, part in parts.items() if part and axis != case.axis)


def dated(machine: MachineResults, parts: Sequence[CaseResult | VideoTrack]) -> str:
    """Where a machine has figures of several runs: of which these are."""
    runs = [part.source.run for part in parts if part.source]
    dates = dict.fromkeys(f"{run.date}, {run.commit}" for run in runs)
    return f"; {'; '.join(dates)}" if len(machine.sources) > 1 else ""


def length_plots(machine: MachineResults) -> list[Plot]:
    """Memory and time, or quality, of every method along each film."""
    films: dict[tuple[str, str], list[VideoTrack]] = {}
    for track in machine.tracks:
        films.setdefault((track.protocol, track.grid), []).append(track)
    plots: list[Plot] = []
    for (protocol, grid), tracks in films.items():
        kinds = [("Memory", "bytes", "bytes"), ("Time of a frame", "seconds", "seconds")]
        for quantity, key, unit in kinds if protocol == "fig1" else [("Quality", "quality", "share")]:
            lines = []
            for track in tracks:
                points = [(p["frame"], p[key]) for p in track.points if p.get(key)]
                computed = [(p["frame"], p[key]) for p in track.computed if p.get(key)]
                beyond = [*points[-1:], *(p for p in computed if points and p[0] > points[-1][0])]
                lines.append(Line(track.method, track.ours, points, beyond))
            caption = f"horizontal: frames; {grid} tokens a frame{dated(machine, tracks)}"
            plots += drawn(f"{quantity} along a video", caption, lines, unit, "computed")
    return plots


def drawn(title: str, caption: str, lines: Sequence[Line], unit: str, how: str) -> Iterator[Plot]:
    """A plot of the lines that have two points or more; none where no line has.

    "seconds" and "bytes" are on logarithmic scales, a "share" from 0 to 1. What was not measured is
    dotted, and says ``how`` it came about.
    """
    lines = [line for line in lines if len(line.points) > 1 or len(line.beyond) > 1]
    if not lines:
        return
    plot = Figure(figsize=(3.7, 2.5), layout="constrained")
    axis = plot.add_subplot()
    others = sorted((line.name for line in lines if not line.ours), key=lambda name: name not in USUAL)
    text = {"seconds": duration, "bytes": size}.get(unit, times)
    words = []
    for line in lines:
        at = 0 if line.ours else others.index(line.name)
        colour, shape, dash = OTHERS[at % len(OTHERS)]
        first = line.ours and line is next(one for one in lines if one.ours)
        look: dict[str, Any] = {"color": colour, "marker": shape, "ls": dash, "lw": 1.3, "markersize": 3.4}
        if line.ours:
            look |= {"color": OURS if first else OURS_TOO, "marker": "o", "ls": "-", "zorder": 3}
            look["lw"] = 2.4 if first else 1.3
        axis.plot(*zip(*line.points), label=line.name, markevery=max(1, len(line.points) // 12), **look)
        words.append(f"{line.name} from {text(line.points[0][1])} to {text(line.points[-1][1])}")
        if len(line.beyond) > 1:
            axis.plot(*zip(*line.beyond), color=look["color"], lw=1.2, ls=":", label=f"{line.name}, {how}")
            words.append(f"{how}, not measured: {line.name} to {text(line.beyond[-1][1])}")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    values = sorted({x for line in lines for x, _ in (*line.points, *line.beyond)})
    if len(values) <= 6:  # few values are named themselves; many are left to powers of ten
        axis.set_xticks(values, [f"{x:,.0f}" if x < 1e5 else f"{x / 1e3:,.0f}k" for x in values])
        axis.minorticks_off()
    if unit == "share":
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: figure(y, 2)))
    else:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: (size if unit == "bytes" else duration)(y, 1)))
        low, high = axis.get_ylim()
        if high / low < 10:  # a flat line is not to look like noise blown up
            middle = (low * high) ** 0.5
            low, high = axis.set_ylim(middle / 10**0.5, middle * 10**0.5)
        axis.yaxis.set_major_locator(LogLocator(numticks=6, subs=(1.0, 2.0, 5.0) if high < 40 * low else (1.0,)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(colors=INK, which="both", labelsize=8)
    axis.grid(True, color=GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    columns = min(2, len(axis.lines))
    plot.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=7.5, labelcolor=INK, handlelength=2.6)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="svg", metadata={"Date": None})
    image = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    yield Plot(title, image, caption, f"Lines, from left to right: {'; '.join(words)}")
