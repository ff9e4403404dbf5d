"""What the figures of one machine do not say: inputs, machine, spread, who could not run, what was not tested."""

from __future__ import annotations

from collections.abc import Iterator

from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.conclusions import title
from xmemk.benchmarks.report.reading import NO_USAGE, Case, Place, Row


def limits(place: Place) -> list[str]:
    """What a reader may not take from the figures."""
    return [
        said
        for found in (_inputs, _machine, slow_products, _medians, _absent, _less, _tests, _runs, _missing_parts)
        for said in found(place)
    ]


def _inputs(place: Place) -> Iterator[str]:
    if any(case.op not in ("frame", "memory-frame", "video") for case in place.cases):
        seeds = "The inputs of the functions are random numbers, the same for everyone"
        yield f"{seeds}: real features have ties and clusters, which change the time of a selection a little."


def _machine(place: Place) -> Iterator[str]:
    devices = {case.device.split(":")[0] for case in (*place.cases, *place.scaling)}
    if devices == {"cpu"}:
        yield f"This is one machine, {place.name}, and its CPU alone: nothing here tells how fast anything is on a GPU."
    elif devices == {"cuda"}:
        yield f"This is one GPU, {place.name}: nothing here tells how fast anything is on a CPU or on another GPU."
    else:
        yield f"This is one machine, {place.name}: on another, ratios can differ and even turn round."


def slow_products(place: Place) -> Iterator[str]:
    """On an AMD processor: what torch's own products are slowed by there."""
    on_cpu = any(case.device == "cpu" for case in (*place.cases, *place.scaling))
    if on_cpu and "AMD" in place.machine.get("processor", ""):
        yield (
            "The processor is AMD's, on which MKL, torch's library for products, takes a slow path: the peers' "
            "products pay for it, ours do not (benchmarks/NOTES.md). Elsewhere the ratios may be smaller."
        )


def _medians(place: Place) -> Iterator[str]:
    rows = [(row, case) for case in place.cases for row in case.timed]
    rounds = [len(row.seconds) for row, _ in rows if row.seconds]
    if not rounds:
        return
    few = sum(n < 5 for n in rounds)
    low, high = min(rounds), max(rounds)
    said = (
        f"Times are medians of {low if low == high else f'{low} to {high}'} rounds, each the mean of a chain of calls"
    )
    if few:
        said += f", {few} of {len(rounds)} of fewer than five"
    row, case = max(rows, key=lambda found: found[0].spread)
    said += f"; the widest spread of those with four rounds or more is {w.percent(row.spread)}"
    said += f" ({row.peer}, {title(case)})"
    yield f"{said}, and differences below it are noise there."


def _absent(place: Place) -> Iterator[str]:
    absent = {row.peer for case in place.cases for row in case.rows if row.time is None}
    ran = {row.peer for case in place.cases for row in case.timed}
    if absent - ran:
        never = w.listed(sorted(absent - ran))
        yield f"Nothing is said about {never}: no case of theirs ran here, for the reasons given below."
    if absent & ran:
        yield f"{w.capital(w.listed(sorted(absent & ran)))} could not do every case; the reasons are given below."


def _less(place: Place) -> Iterator[str]:
    rows = [(row, case) for case in place.cases for row in case.timed if not row.ours and not row.whole]
    lacking = sorted({row.peer for row, _ in rows if NO_USAGE in row.peer})
    others = sorted({row.peer for row, _ in rows if row.another})
    wrong = sorted({row.peer for row, _ in rows if row.status == "WRONG"})
    part = sorted({row.peer for row, _ in rows} - {*lacking, *others, *wrong})
    if lacking:
        quick = [f"{row.peer} in {title(case)}" for row, case in rows if row.peer in lacking and _quicker(row, case)]
        said = f"{w.listed(lacking)} return no usage, which XMem's memory needs, so they do less than xmemk"
        yield said + (f"; faster than xmemk are {w.listed(quick)}." if quick else ", and are slower all the same.")
    if others:
        yield f"{w.listed(others)}: another method, with other results. Its time is beside ours, not for the same work."
    if wrong:
        yield f"{w.listed(wrong)} gave wrong results somewhere and count as nobody's rival there."
    if part:
        yield f"{w.capital(w.listed(part))}: a part of the work, as a measure; not a way to do it."


def _quicker(row: Row, case: Case) -> bool:
    ratio = case.ratio(row)
    return ratio is not None and ratio < 1


def _tests(place: Place) -> Iterator[str]:
    told = {case.tested for case in place.cases if case.tested is not True}
    if None in told:
        told.discard(None)
        yield "Some runs do not tell whether the tests of the functions passed before they were timed."
    yield from (
        f"Some figures are of code that was not tested first: {said or 'no reason given'}."
        for said in sorted(map(str, told))
    )


def _runs(place: Place) -> Iterator[str]:
    sources = place.sources
    commits = {source.commit for source in sources}
    if len(sources) > 1:
        days = sorted({source.date for source in sources})
        when = f"on {days[0]}" if len(days) == 1 else f"between {days[0]} and {days[-1]}"
        said = f"The figures come from {len(sources)} runs {when}, of {w.counted(len(commits), 'commit')}: "
        yield said + "compare within a table, where everybody took turns, rather than between tables."
    if any("dirty" in commit for commit in commits):
        yield "Some runs were of files that differ from their commit."


def _missing_parts(place: Place) -> Iterator[str]:
    parts = {
        "the functions": place.cases,
        "growth with the sizes": place.scaling,
        "the length of a video": place.tracks,
    }
    absent = [name for name, found in parts.items() if not found]
    if absent:
        yield f"Not measured in these results: {w.listed(absent)}."
