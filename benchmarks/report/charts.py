"""The report's plots, by matplotlib, as SVG in the page's own colours: CSS decides light or dark."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.reading import Case, Row, Track

# Stand-ins, replaced by the page's CSS variables. Shape and dash tell the lines apart where colour does not.
INK, SOFT, LINE, OURS, OURS_TOO = "#010101", "#020202", "#030303", "#040404", "#050505"
OTHERS = ("#060606", "#070707", "#080808", "#090909", "#0a0a0a")
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", OURS: "ours", OURS_TOO: "ours-too"}
VARIABLES |= {colour: f"other-{i}" for i, colour in enumerate(OTHERS)}
SHAPES = ("s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 3)))

USUAL = ("tidy PyTorch", "original")  # they look the same in every plot

Points = list[tuple[float, float]]


def bars(name: str, case: Case) -> str:
    """Time of everybody on one case, the fastest above; what does less than the whole is hatched."""
    rows = sorted(case.timed, key=lambda row: row.time or 0.0)
    figure, axis = _figure(3.5, 0.35 + 0.27 * len(rows))
    longest = max(row.time or 0.0 for row in rows)
    for at, row in enumerate(rows):
        colour = OURS if row is case.ours else OURS_TOO if row.ours else OTHERS[4]
        partial = not row.ours and not row.whole
        axis.barh(
            at,
            row.time or 0.0,
            height=0.62,
            color="none" if partial else colour,
            edgecolor=colour,
            hatch="////" if partial else None,
            linewidth=0.8,
        )
        said = w.duration(row.time or 0.0) + _beside(case, row)
        axis.text((row.time or 0.0) + 0.015 * longest, at, said, va="center", color=INK, fontsize=8)
    axis.set_yticks(range(len(rows)), [row.peer for row in rows])
    for label, row in zip(axis.get_yticklabels(), rows):
        label.set_color(INK)
        label.set_weight("bold" if row is case.ours else "normal")
    axis.invert_yaxis()
    axis.set_xlim(0, 1.5 * longest)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(left=False)
    alt = ", ".join(f"{row.peer} {w.duration(row.time or 0.0)}" for row in rows)
    return _svg(figure, name, f"Bars of time: {alt}")


def _beside(case: Case, row: Row) -> str:
    ratio = case.ratio(row)
    return "" if row is case.ours or ratio is None else f" ({w.times(ratio)}x)"


def curves(name: str, cases: Sequence[Case], value: Callable[[Row], float | None], unit: str) -> str:
    """One quantity of every peer over the values of an axis, both scales logarithmic; "" where nobody has it. Times
    that were extrapolated, not measured, are dotted.
    """
    lines: dict[str, tuple[bool, Points]] = {}
    for case in cases:
        for row in case.rows:
            found = value(row)
            if found and row.time is not None:
                lines.setdefault(row.peer, (row.ours, []))[1].append((case.value, found))
    beyond = {peer: [points[-1]] for peer, (_, points) in lines.items()} if unit == "seconds" else {}
    for case in cases:
        for row in case.rows:
            if (
                row.time is None
                and row.extrapolated_seconds
                and case.value > beyond.get(row.peer, [(math.inf, 0)])[0][0]
            ):
                beyond[row.peer].append((case.value, row.extrapolated_seconds))
    return _lines(name, lines, unit, beyond, "extrapolated") if lines else ""


def along(name: str, tracks: Sequence[Track], key: str, unit: str) -> str:
    """One quantity of every method over the frames of a video; what was computed, not measured, is dotted."""
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
    figure, axis = _figure(3.7, 2.5)
    others = [peer for peer, (ours, _) in lines.items() if not ours]
    others = [peer for peer in USUAL if peer in others] + [peer for peer in others if peer not in USUAL]
    first_of_ours = next((peer for peer, (ours, _) in lines.items() if ours), None)
    for peer, (ours, points) in lines.items():
        if ours:
            first = peer == first_of_ours
            colour, shape, dash = OURS if first else OURS_TOO, "o", "-" if first else DASHES[1]
        else:
            at = others.index(peer) % len(OTHERS)
            colour, shape, dash = OTHERS[at], SHAPES[at], DASHES[at]
        look: dict[str, Any] = {"color": colour, "marker": shape, "ls": dash, "zorder": 3 if ours else 2}
        look["lw"] = 2.4 if peer == first_of_ours else 1.3
        few = max(1, len(points) // 12)
        axis.plot(*zip(*points), markersize=4 if ours else 3.4, markevery=few, label=peer, **look)
        if len(beyond.get(peer, ())) > 1:
            axis.plot(*zip(*beyond[peer]), color=colour, lw=1.2, ls=":", marker="", label=f"{peer}, {how}")
    axis.set_xscale("log")
    if unit == "share":
        axis.set_ylim(0, 1)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: w.figure(y, 2)))
    else:
        axis.set_yscale("log")
        said = w.duration if unit == "seconds" else w.size
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: said(y, 1)))
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
    figure.legend(
        loc="outside lower left", ncols=columns, frameon=False, fontsize=7.5, labelcolor=INK, handlelength=2.6
    )
    said = {"seconds": w.duration, "bytes": w.size}.get(unit, w.times)
    ends = (f"{peer} from {said(points[0][1])} to {said(points[-1][1])}" for peer, (_, points) in lines.items())
    told = [f"{peer} to {said(points[-1][1])}" for peer, points in beyond.items() if len(points) > 1]
    more = f"; {how}, not measured: {', '.join(told)}" if told else ""
    return _svg(figure, name, f"Lines, from left to right: {', '.join(ends)}{more}")


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
        middle = (low * high) ** 0.5
        axis.set_ylim(middle / 10**0.5, middle * 10**0.5)


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
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "hatch.linewidth": 0.7}):
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
