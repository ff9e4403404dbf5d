"""What the figures of one machine do not say: inputs, machine, spread, who could not run, what was not tested."""

from __future__ import annotations

from collections.abc import Iterator

from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.conclusions import title
from xmemk.benchmarks.report.reading import NO_USAGE, Case, Place, Row


def limits(place: Place) -> list[str]:
    """What a reader may not take from the figures."""
    return [said for found in PARTS for said in found(place)]


def _inputs(place: Place) -> Iterator[str]:
    if any(case.op not in ("frame", "memory-frame", "video") for case in place.cases):
        seeds = "The inputs of the functions are random numbers, the same for everyone"
        yield f"{seeds}: real features have ties and clusters, which can change the time of a selection."
    if any(track.protocol == "fig5" for track in place.tracks):
        yield (
            "Quality along a video is that of the demo's hand-made features on the bundled clip: it says what the "
            "rules of the memories do to the same features, not what XMem scores."
        )


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
            "The processor is AMD's, on which MKL, torch's library for products, takes a slow path: all who "
            "multiply by it pay for it, our C++ does not (benchmarks/NOTES.md). Elsewhere the ratios may be smaller."
        )


def _medians(place: Place) -> Iterator[str]:
    rows = [(row, case) for case in place.cases for row in case.timed if row.seconds]
    if not rows:
        return
    rounds = [len(row.seconds) for row, _ in rows]
    few = sum(n < 5 for n in rounds)
    low, high = min(rounds), max(rounds)
    told = w.counted(high, "round") if low == high else f"{low} to {high} rounds"
    said = f"Times are medians of {told}, each the mean of a chain of calls"
    said += " (on a CPU the median of three chains, where a call takes less than half a second)"
    if 0 < few < len(rounds):
        said += f"; {few} of the {len(rounds)} times are of fewer than five rounds"
    spread = [(row, case) for row, case in rows if len(row.seconds) > 3]
    if not spread:
        yield f"{said}: too few to tell their spread."
        return
    row, case = max(spread, key=lambda found: found[0].spread)
    said += f"; the widest spread of those with four rounds or more is {w.percent(row.spread)}"
    yield f"{said} ({row.peer}, {title(case)}), and differences below it are noise there."


def _absent(place: Place) -> Iterator[str]:
    absent = {row.peer for case in place.cases for row in case.rows if row.time is None}
    ran = {row.peer for case in place.cases for row in case.timed}
    never, sometimes = sorted(absent - ran), sorted(absent & ran)
    if never:
        were = w.verb(never, "it was", "they were")
        yield f"Nothing is said about {w.listed(never)}: {were} timed in no case, for the reasons given below."
    if sometimes:
        was = w.verb(sometimes, "was", "were")
        yield f"{w.capital(w.listed(sometimes))} {was} not timed in every case; the reasons are given below."
    without = [title(case) for case in place.cases if case.ours is None]
    if without:
        yield f"xmemk has no time of its own in {w.listed(without)}, so nothing is compared there."
    for case in place.cases:
        first = next((row for row in case.rows if row.ours), None)
        if case.ours and first is not None and case.ours is not first:
            yield f'In {title(case)}, "xmemk" is {case.ours.peer}, since {first.peer} has no time there.'


def _less(place: Place) -> Iterator[str]:
    rows = [(row, case) for case in place.cases for row in case.timed if not row.ours and not row.whole]
    wrong = sorted({row.peer for row, _ in rows if row.status == "WRONG"})
    right = [(row, case) for row, case in rows if row.status != "WRONG"]
    lacking = sorted({row.peer for row, _ in right if NO_USAGE in row.peer})
    others = sorted({row.peer for row, _ in right if row.another} - {*lacking})
    part = sorted({row.peer for row, _ in right} - {*lacking, *others})
    if lacking:
        compared = [(row, case) for row, case in right if row.peer in lacking and case.ratio(row) is not None]
        quick = [f"{row.peer} in {title(case)}" for row, case in compared if _quicker(row, case)]
        returns, does = w.verb(lacking, "returns", "return"), w.verb(lacking, "it does", "they do")
        said = f"{w.listed(lacking)} {returns} no usage, which XMem's memory needs, so {does} less than xmemk"
        if quick:
            said += f"; faster than xmemk {w.verb(quick, 'is', 'are')} {w.listed(quick)}"
        elif compared:
            said += f", and {w.verb(lacking, 'is', 'are')} no faster"
        yield f"{said}."
    if others:
        ways, times = (
            w.verb(others, "another method", "other methods"),
            w.verb(others, "Its time is", "Their times are"),
        )
        yield f"{w.listed(others)}: {ways}, with other results. {times} beside ours, not for the same work."
    if wrong:
        count = w.verb(wrong, "counts", "count")
        yield f"{w.listed(wrong)} gave wrong results somewhere and {count} as nobody's rival there."
    if part:
        parts = w.verb(part, "a part of the work, as a measure; not a way", "parts of the work, as measures; not ways")
        yield f"{w.capital(w.listed(part))}: {parts} to do it."
    rounded = sorted({row.peer for case in place.cases for row in case.timed if row.status == "rounded"})
    if rounded:
        why = "differ somewhere from float64 by what products in 16 bits explain: rounded, not exact"
        yield f"Results of {w.listed(rounded)} {why}."


def _quicker(row: Row, case: Case) -> bool:
    ratio = case.ratio(row)
    return ratio is not None and ratio < 1


def _tests(place: Place) -> Iterator[str]:
    told = {case.tested for case in place.cases if case.tested is not True}
    if None in told:
        told.discard(None)
        yield "Some runs do not tell whether the tests of the functions passed before they were timed."
    for said in sorted(told, key=str):
        why = said if isinstance(said, str) and said else "no reason given"
        yield f"Some figures are of code that was not tested first: {why}."


def _runs(place: Place) -> Iterator[str]:
    sources = place.sources
    commits = {source.commit for source in sources}
    if len(sources) > 1:
        days = sorted({source.date for source in sources})
        when = f"of {days[0]}" if len(days) == 1 else f"between {days[0]} and {days[-1]}"
        said = f"The figures come from {len(sources)} runs {when}, of {w.counted(len(commits), 'commit')}: "
        yield (
            said + "each names its own; compare within a table, where everybody took turns, rather than between tables."
        )
    if any("dirty" in commit for commit in commits):
        yield "Some runs were of files that differ from their commit."


def _missing_parts(place: Place) -> Iterator[str]:
    parts = {
        "the functions": place.cases,
        "growth with the sizes": place.scaling,
        "the length of a video": place.tracks,
        "the paper's claims": place.claims,
    }
    absent = [name for name, found in parts.items() if not found]
    if absent:
        yield f"Not measured in these results: {w.listed(absent)}."


PARTS = (_inputs, _machine, slow_products, _medians, _absent, _less, _tests, _runs, _missing_parts)
