"""The report's page: one HTML file that needs no network and no script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from xmemk.benchmarks.report import charts, tables
from xmemk.benchmarks.report.formatting import counted, duration, size, times
from xmemk.benchmarks.report.result_files import MachineResults
from xmemk.benchmarks.report.schema import CaseResult, VideoTrack

import xmemk


class Plot(NamedTuple):
    """A plot with what stands above and below it."""

    title: str
    svg: Markup
    caption: str


def write_page(path: Path, machines: list[MachineResults], passed_over: list[str], commands: list[str]) -> None:
    """``commands`` repeat what is shown; ``passed_over`` is what is not shown, and why."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(t=tables, cards=_cards, scaling=_scaling, length=_length)
    page = environment.get_template("page.html").render(
        machines=machines, passed_over=passed_over, commands=commands, version=xmemk.__version__
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _cards(machine: MachineResults) -> Iterator[tuple[str, str]]:
    """The few figures that stand for the rest: (figure, what it is)."""
    case = tables.main_case(machine)
    if case is None or case.ours is None:
        return
    yield duration(case.ours.median), f"{tables.title(case)}: {tables.sizes(case)}"
    usual = [row for names in (tables.TIDY, tables.ORIGINAL) if (row := case.row(*names)) and row.whole]
    beside = list({row.peer: row for row in (case.rivals[0], *usual)}.values())
    for row in beside:
        rounded = " (rounded)" if row.status == "rounded" else ""
        yield f"{times(case.ratio(row))}x", f"the same by {row.peer}{rounded} takes {duration(row.median)}"
    if case.ours.extra_bytes is not None:
        others = [f"{row.peer} {size(row.extra_bytes)}" for row in beside if row.extra_bytes]
        yield size(case.ours.extra_bytes), "; ".join(["memory beyond its inputs", *others])


def _dated(machine: MachineResults, parts: Sequence[CaseResult | VideoTrack]) -> str:
    """Where a machine has figures of several runs: of which these are."""
    runs = [part.source.run for part in parts if part.source]
    dates = dict.fromkeys(f"{run.date}, {run.commit}" for run in runs)
    return f"; {'; '.join(dates)}" if len(machine.sources) > 1 else ""


def _scaling(machine: MachineResults) -> Iterator[Plot]:
    for number, curve in enumerate(machine.curves):
        first, axis = curve[0], tables.AXES.get(curve[0].axis, curve[0].axis)
        caption = f"horizontal: {axis}; {_fixed(first)}{_dated(machine, curve)}"
        for quantity, unit in (("time", "seconds"), ("extra memory", "bytes")):
            svg = _drawn(charts.curves, machine, ("curve", unit, number), curve, unit)
            if svg:
                yield Plot(f"{tables.label(first.op)}: {quantity} against {axis}", svg, caption)


def _fixed(case: CaseResult) -> str:
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


def _length(machine: MachineResults) -> Iterator[Plot]:
    groups: dict[tuple[str, str], list[VideoTrack]] = {}
    for track in machine.tracks:
        groups.setdefault((track.protocol, track.grid), []).append(track)
    for number, ((protocol, grid), tracks) in enumerate(groups.items()):
        kinds = [("Memory", "bytes", "bytes"), ("Time of a frame", "seconds", "seconds")]
        for quantity, key, unit in kinds if protocol == "fig1" else [("Quality", "quality", "share")]:
            svg = _drawn(charts.along, machine, (protocol, number, key), tracks, key, unit)
            if svg:
                caption = f"horizontal: frames; {grid} tokens a frame{_dated(machine, tracks)}"
                yield Plot(f"{quantity} along a video", svg, caption)


def _drawn(chart: Callable[..., str], machine: MachineResults, name: tuple[object, ...], *arguments: Any) -> Markup:
    """``name``: an id of its own for every plot of a page."""
    return Markup(chart(re.sub(r"\W+", "-", "-".join(map(str, (machine.name, *name)))).lower(), *arguments))
