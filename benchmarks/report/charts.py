"""The report's plots as SVG in the page's own colours: CSS decides light or dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from xmemk.benchmarks.report.formatting import duration, figure, size, times
from xmemk.benchmarks.report.schema import CaseResult, VideoTrack

# Stand-ins, replaced by the page's CSS variables. Shape and dash tell the lines apart where colour
# does not.
INK, SOFT, LINE, OURS, OURS_TOO = "#010101", "#020202", "#030303", "#040404", "#050505"
OTHERS = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a")
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", OURS: "ours", OURS_TOO: "ours-too"}
VARIABLES |= {colour: f"other-{i}" for i, colour in enumerate(OTHERS)}
SHAPES = ("s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 3)))

USUAL = ("tidy PyTorch", "original")  # they look the same in every plot

Points = list[tuple[float, float]]


def curves(name: str, cases: Sequence[CaseResult], unit: str) -> str:
    """ "seconds" or "bytes" of every peer over the values of an axis; "" where nobody has it.

    Both scales are logarithmic. Times that were extrapolated, not measured, are dotted.
    """
    lines: dict[str, tuple[bool, Points]] = {}
    for case in cases:
        for row in case.timed:
            value = row.median if unit == "seconds" else row.extra_bytes
            if value:
                lines.setdefault(row.peer, (row.ours, []))[1].append((case.value, value))
    beyond = {peer: [points[-1]] for peer, (_, points) in lines.items()} if unit == "seconds" else {}
    for case in cases:
        for row in case.rows:
            if row.extrapolated_seconds and row.peer in beyond and case.value > beyond[row.peer][0][0]:
                beyond[row.peer].append((case.value, row.extrapolated_seconds))
    return _lines(name, lines, unit, beyond, "extrapolated") if lines else ""


def along(name: str, tracks: Sequence[VideoTrack], key: str, unit: str) -> str:
    """One quantity of every method along a video; what was computed, not measured, is dotted."""
    lines, beyond = {}, {}
    for track in tracks:
        points = [(p["frame"], p[key]) for p in track.points if p.get(key)]
        if points:
            lines[track.method] = (track.ours, points)
            computed = [(p["frame"], p[key]) for p in track.computed if p.get(key)]
            beyond[track.method] = [points[-1], *(p for p in computed if p[0] > points[-1][0])]
    return _lines(name, lines, unit, beyond) if lines else ""


def _lines(
    name: str, lines: dict[str, tuple[bool, Points]], unit: str, beyond: dict[str, Points], how: str = "computed"
) -> str:
    plot, axis = _figure(3.7, 2.5)
    others = [peer for peer, (ours, _) in lines.items() if not ours]
    others = [peer for peer in USUAL if peer in others] + [peer for peer in others if peer not in USUAL]
    first_of_ours = next((peer for peer, (ours, _) in lines.items() if ours), None)
    for peer, (ours, points) in lines.items():
        first, at = peer == first_of_ours, 0 if ours else others.index(peer) % len(OTHERS)
        colour = (OURS if first else OURS_TOO) if ours else OTHERS[at]
        look: dict[str, Any] = {"color": colour, "marker": "o" if ours else SHAPES[at], "lw": 2.4 if first else 1.3}
        look |= {"ls": DASHES[0 if first else 1 if ours else at]}
        look |= {"zorder": 3 if ours else 2, "markersize": 4 if ours else 3.4, "markevery": max(1, len(points) // 12)}
        axis.plot(*zip(*points), label=peer, **look)
        if len(beyond.get(peer, ())) > 1:
            axis.plot(*zip(*beyond[peer]), color=colour, lw=1.2, ls=":", marker="", label=f"{peer}, {how}")
    axis.set_xscale("log")
    if unit == "share":
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: figure(y, 2)))
    else:
        axis.set_yscale("log")
        in_unit = duration if unit == "seconds" else size
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: in_unit(y, 1)))
        _widen(axis)
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(numticks=6, subs=(1.0, 2.0, 5.0) if high < 40 * low else (1.0,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    shown = [*(points for _, points in lines.values()), *beyond.values()]
    _ticks_at_values(axis, sorted({x for points in shown for x, _ in points}))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True, color=LINE, lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    columns = 2 if len(axis.lines) > 2 else max(1, len(axis.lines))
    plot.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=7.5, labelcolor=INK, handlelength=2.6)
    text = {"seconds": duration, "bytes": size}.get(unit, times)
    ends = (f"{peer} from {text(points[0][1])} to {text(points[-1][1])}" for peer, (_, points) in lines.items())
    dotted = [f"{peer} to {text(points[-1][1])}" for peer, points in beyond.items() if len(points) > 1]
    more = f"; {how}, not measured: {', '.join(dotted)}" if dotted else ""
    return _svg(plot, name, f"Lines, from left to right: {', '.join(ends)}{more}")


def _ticks_at_values(axis: Any, values: list[float]) -> None:
    """Few values are named themselves; many are left to powers of ten."""
    axis.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 6:
        axis.set_xticks(values, [f"{x:,.0f}" if x < 1e5 else f"{x / 1e3:,.0f}k" for x in values])
        axis.minorticks_off()


def _widen(axis: Any) -> None:
    """A flat line is not to look like noise blown up: at least a factor of ten is shown."""
    low, high = axis.get_ylim()
    if high / low < 10:
        center = (low * high) ** 0.5
        axis.set_ylim(center / 10**0.5, center * 10**0.5)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    figure.patch.set_visible(False)
    axis.patch.set_visible(False)
    axis.tick_params(colors=SOFT, which="both", labelsize=8)
    axis.spines[:].set_color(LINE)
    return figure, axis


def _svg(figure: Figure, name: str, alt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Several plots share a page: ids are made their own, and those that nothing refers to go.
    used = set(re.findall(r'url\(#([^)"]+)\)|xlink:href="#([^"]+)"', svg))
    names = {a or b for a, b in used}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in names else "", svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg).replace('xlink:href="#', f'xlink:href="#{name}-')
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    label = html.escape(alt).replace("\\", "\\\\")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    return re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"',
        rf'\1width="{width}" height="{height}" role="img" aria-label="{label}"',
        svg,
        count=1,
    )
