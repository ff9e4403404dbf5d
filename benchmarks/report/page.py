"""The report's page: one HTML file that needs no network and no script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from xmemk.benchmarks.report import charts, conclusions, limits
from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.reading import Case, Place, Row, Track

import xmemk


class Plot(NamedTuple):
    """A plot with what stands above and below it."""

    title: str
    svg: Markup
    caption: str


def write_page(path: Path, places: list[Place], passed_over: list[str], commands: list[str]) -> None:
    """Writes ``path``. ``commands`` repeat what is shown; ``passed_over`` is what is not shown, and why."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        w=w,
        c=conclusions,
        limits=limits.limits,
        bars=_bars,
        scaling=_scaling,
        length=_length,
        cards=_cards,
        machine=_machine,
    )
    page = environment.get_template("page.html").render(
        places=places, passed_over=passed_over, commands=commands, version=xmemk.__version__
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _machine(place: Place) -> dict[str, str]:
    """The machine in words, and how fast it was seen to be."""
    told = dict(place.machine)
    for source in place.sources:
        if source.roof:
            best = (w.figure(source.roof[name]) for name in ("gflops", "gbytes_per_s"))
            told["measured best"] = "{} GFLOP/s multiplying, {} GB/s copying".format(*best)
    return told


def _cards(place: Place) -> Iterator[tuple[str, str]]:
    """The few figures that stand for the rest: (figure, what it is)."""
    case = conclusions.main_case(place)
    if case is None or case.ours is None:
        return
    yield w.duration(case.ours.time or 0.0), f"{conclusions.noun(case.op)}, {case.workload}, {conclusions.sizes(case)}"
    for row in conclusions.beside(case):
        ratio = case.ratio(row)
        if ratio is not None:
            yield f"{w.times(ratio)}x", f"the same by {conclusions.known(row)} takes {w.duration(row.time or 0.0)}"
    if case.ours.extra_bytes is not None:
        others = [f"{row.peer} {w.size(row.extra_bytes)}" for row in conclusions.beside(case) if row.extra_bytes]
        yield w.size(case.ours.extra_bytes), "memory beyond its inputs" + (f"; {w.listed(others)}" if others else "")


def _bars(place: Place) -> Iterator[Plot]:
    for number, case in enumerate(place.cases):
        if case.timed:
            svg = _drawn(charts.bars, _name(place, "bars", number), case)
            objects = "" if case.op in ("select", "evict") else f", {w.counted(case.objects, 'object')}"
            caption = ", ".join(filter(None, (f"{case.workload}{objects}: {conclusions.sizes(case)}", case.setting)))
            caption += "" if case.dtype == "float32" else f", {case.dtype}"
            yield Plot(w.capital(conclusions.noun(case.op)), svg, caption + _dated(place, [case]))


def _dated(place: Place, parts: Sequence[Case | Track]) -> str:
    """Where a place has figures of several runs: of which these are."""
    told = dict.fromkeys(f"{part.source.date}, {part.source.commit}" for part in parts)
    return f"; {'; '.join(told)}" if len(place.sources) > 1 else ""


def _scaling(place: Place) -> Iterator[Plot]:
    for number, curve in enumerate(place.curves):
        axis, op = curve[0].axis, curve[0].op
        name = conclusions.AXES.get(axis, axis)
        caption = f"horizontal: {name}; {_held(curve[0], axis)}{_dated(place, curve)}"
        for what, value, unit in (("time", _time, "seconds"), ("extra memory", _extra, "bytes")):
            svg = _drawn(charts.curves, _name(place, axis, op, unit, number), curve, value, unit)
            if svg:
                yield Plot(f"{w.capital(conclusions.noun(op))}: {what} against {name}", svg, caption)


def _held(case: Case, axis: str) -> str:
    """What stays the same along an axis."""
    told: dict[str, object] = {"": case.workload}
    told |= {
        "N": case.tokens and w.counted(case.tokens, "token"),
        "Q": case.queries and w.counted(case.queries, "query", "queries"),
    }
    told |= {"O": w.counted(case.objects, "object"), "k": case.top_k and f"k = {case.top_k}"}
    told |= {"threads": w.counted(case.threads, "thread")}
    return ", ".join(str(said) for name, said in told.items() if said and name != axis)


def _length(place: Place) -> Iterator[Plot]:
    groups: dict[tuple[str, str], list[Track]] = {}
    for track in place.tracks:
        f = track.features
        told = f"features of {f.get('height', '?')} x {f.get('width', '?')}, {w.counted(f.get('objects', 1), 'object')}"
        groups.setdefault((track.protocol, told), []).append(track)
    for number, ((protocol, told), tracks) in enumerate(groups.items()):
        kinds = [("Memory", "bytes", "bytes"), ("Time of a frame", "seconds", "seconds")]
        for what, key, unit in kinds if protocol == "fig1" else [("Quality", "quality", "share")]:
            svg = _drawn(charts.along, _name(place, protocol, number, key), tracks, key, unit)
            if svg:
                yield Plot(f"{what} along a video", svg, f"horizontal: frames; {told}{_dated(place, tracks)}")


def _time(row: Row) -> float | None:
    return row.time


def _extra(row: Row) -> float | None:
    return row.extra_bytes


def _drawn(chart: Callable[..., str], *arguments: object) -> Markup:
    return Markup(chart(*arguments))


def _name(place: Place, *parts: object) -> str:
    """An id of its own for every plot of a page."""
    return re.sub(r"\W+", "-", "-".join(map(str, (place.name, *parts)))).lower()
