"""What the figures of one machine say, in sentences made from them: a sentence changes when its figure does."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from xmemk.benchmarks.report import words as w
from xmemk.benchmarks.report.reading import Case, Claim, Place, Row, Track

OPS = {
    "read": "top-k memory read",
    "dense": "dense memory read",
    "train": "top-k read, forward and backward",
    "backward": "top-k read, backward alone",
    "train-dense": "dense read, forward and backward",
    "backward-dense": "dense read, backward alone",
    "consolidate": "consolidation",
    "select": "selection of prototypes",
    "evict": "eviction",
    "frame": "whole frame",
    "memory-frame": "whole frame that is remembered",
    "video": "whole video",
}
PEERS = {"tidy PyTorch": "a short plain PyTorch", "original": "the released code's formulation"}
AXES = {"N": "memory tokens", "Q": "queries", "O": "objects", "k": "k", "threads": "threads"}


def noun(op: str) -> str:
    return OPS.get(op, op)


def title(case: Case) -> str:
    """What a case is, in a few words: top-k memory read (480p-full, 5 objects)."""
    objects = "" if case.op in ("select", "evict") else f", {w.counted(case.objects, 'object')}"
    dtype = "" if case.dtype == "float32" else f", {case.dtype}"
    setting = f", {case.setting}" if case.setting else ""
    return f"{noun(case.op)} ({case.workload}{objects}{dtype}{setting})"


def sizes(case: Case) -> str:
    """24,580 tokens, 1,620 queries, k = 30."""
    told = [w.counted(case.tokens, "token")] if case.tokens else []
    noun = ("prototype",) if case.op == "consolidate" else ("query", "queries")
    told += [w.counted(case.queries, *noun)] if case.queries else []
    told += [f"k = {case.top_k}"] if case.top_k else []
    return ", ".join(told)


def main_case(place: Place) -> Case | None:
    """The case that stands for the whole: the top-k read of a full 480p memory, or what is nearest to it."""
    usable = [case for case in place.cases if case.ours and case.rivals]
    wanted = ("read", "480p-full", 1)
    return max(usable, key=lambda c: [a == b for a, b in zip((c.op, c.workload, c.objects), wanted)], default=None)


def beside(case: Case) -> list[Row]:
    """Whom the headline names: the fastest rival, the tidy formulation and the original."""
    named = [row for row in map(case.row, PEERS) if row is not None and row.whole]
    return list(dict.fromkeys([*case.rivals[:1], *named]))


def known(row: Row) -> str:
    return PEERS.get(row.peer, named(row))


def named(row: Row) -> str:
    """Its name, and that its result is no more than near the others' where it is so."""
    return f"{row.peer} (rounded)" if row.status == "rounded" else row.peer


def headline(place: Place) -> str:
    case = main_case(place)
    if case is None:
        return "What was measured"
    return f"{w.capital(noun(case.op))}: {w.listed([w.speed(r, known(row)) for row, r in _ratios(case)])}"


def answer(place: Place) -> list[str]:
    """How much faster, how much less memory, and whether that holds throughout: at most three sentences."""
    case = main_case(place)
    said = []
    if case is not None and case.ours is not None:
        compared = w.listed([w.speed(r, known(row)) for row, r in _ratios(case)])
        what = f"{case.workload} ({sizes(case)})" if sizes(case) else case.workload
        where = f"On {place.name}" + (f" with {w.counted(case.threads, 'thread')}" if case.device == "cpu" else "")
        said.append(
            f"{where}, xmemk does the {noun(case.op)} of {what} in {w.duration(case.ours.time or 0.0)}: {compared}."
        )
        mine, others = case.ours.extra_bytes, [row for row in beside(case) if row.extra_bytes is not None]
        if mine is not None and others:
            shares = w.listed([w.share(mine, row.extra_bytes or 0, known(row)) for row in others])
            said.append(f"Beyond its inputs that takes {w.size(mine)} of memory: {shares}.")
    said += list(_throughout(place))[:1]
    return said


def _compared(cases: Sequence[Case]) -> list[tuple[Case, Row, float]]:
    """The cases with a rival, its fastest one, and how many times our time that took."""
    fastest = [(case, case.rivals[0]) for case in cases if case.ours and case.rivals]
    return [(case, row, r) for case, row in fastest if (r := case.ratio(row)) is not None]


def _throughout(place: Place) -> Iterator[str]:
    compared = _compared(place.cases)
    if not compared:
        return
    slower = [(case, row, r) for case, row, r in compared if r <= 1 / w.SAME]
    level = [r for _, _, r in compared if 1 / w.SAME < r < w.SAME]
    faster = sorted(r for _, _, r in compared if r >= w.SAME)
    parts = []
    if faster:
        parts.append(f"faster in {_of(faster, compared)}, {w.span(faster[0], faster[-1])} times as fast")
    if level:
        parts.append(f"about equal in {_of(level, compared)}")
    if slower:
        case, row, r = min(slower, key=lambda found: found[2])
        worst = "" if len(slower) == 1 else "at worst "
        worst += f"in the {title(case)}, where {named(row)} takes {w.times(r)} of xmemk's time"
        parts.append(f"slower in {_of(slower, compared)}, {worst}")
    same = (
        "the same result" if all(row.status != "rounded" for _, row, _ in compared) else "the same or a rounded result"
    )
    yield f"Beside the fastest other way to {same}, xmemk is {'; '.join(parts)}."


def _of(some: Sequence[object], whole: Sequence[object]) -> str:
    if len(some) < len(whole):
        return f"{len(some)} of {len(whole)} cases"
    return {1: "the one case measured", 2: "both cases"}.get(len(whole), f"all {len(whole)} cases")


def conclusions(place: Place) -> list[str]:
    """What a reader may take from the figures."""
    found = [*_by_op(place), *_memory(place), *_error(place), *_roof(place), *_growth(place)]
    return [*found, *along(place.tracks), *claimed(place.claims)]


def _by_op(place: Place) -> Iterator[str]:
    for op in dict.fromkeys(case.op for case in place.cases):
        found = _compared([case for case in place.cases if case.op == op])
        if not found:
            continue
        other = f"the fastest other ({w.listed(list(dict.fromkeys(named(row) for _, row, _ in found)))})"
        ratios = [r for *_, r in found]
        low, high = min(ratios), max(ratios)
        cases = f"in {_of(found, found)}"
        if low >= w.SAME:
            verdict = f"{w.span(low, high)} times as fast as {other} {cases}"
        elif high <= 1 / w.SAME:
            verdict = f"slower than {other}, which takes {w.span(low, high)} of our time, {cases}"
        elif low > 1 / w.SAME and high < w.SAME:
            verdict = f"about as fast as {other} {cases}"
        else:
            counts = {
                "faster": sum(r >= w.SAME for r in ratios),
                "about equal": sum(1 / w.SAME < r < w.SAME for r in ratios),
                "slower": sum(r <= 1 / w.SAME for r in ratios),
            }
            told = w.listed([f"{name} in {count}" for name, count in counts.items() if count])
            verdict = f"{told} of {len(found)} cases, where {other} takes {w.span(low, high)} times our time"
        unclear = [case for case, row, r in found if abs(r - 1) <= (case.ours.spread if case.ours else 0) + row.spread]
        if unclear and len(found) > 1:
            verdict += f"; in {len(unclear)} of them the difference is within the spread of the measurements"
        elif unclear:
            verdict += "; the difference is within the spread of the measurements"
        yield f"{w.capital(noun(op))}: {verdict}."


def _memory(place: Place) -> Iterator[str]:
    shares = []
    for case in place.cases:
        mine = case.ours.extra_bytes if case.ours else None
        shares += [(row.extra_bytes / mine, case, row) for row in case.rivals if mine and row.extra_bytes is not None]
    if not shares:
        return
    (low, case, row), (high, *_) = min(shares, key=lambda s: s[0]), max(shares, key=lambda s: s[0])
    less = sum(ratio < 1 for ratio, *_ in shares)
    least = f"{w.times(low)} times ours, by {named(row)} in {title(case)}"
    if len(shares) == 1:
        yield f"Memory: in the one comparison, what is taken beyond the inputs is {least}."
    elif less == 0:
        yield f"Memory: beyond the inputs, others take up to {w.times(high)} times ours; the least is {least}."
    else:
        said = f"Memory: beyond the inputs, others take less than ours in {less} of {len(shares)} comparisons"
        yield f"{said}; the least is {least}, the most {w.times(high)} times."


def _error(place: Place) -> Iterator[str]:
    pairs = []
    for case in place.cases:
        # A choice is right or wrong; a frame is held to the original's memory, not to float64.
        if (
            case.op not in ("select", "evict", "frame", "memory-frame", "video")
            and case.ours
            and case.ours.error is not None
        ):
            pairs += [(case.ours.error, row.error) for row in case.rivals if row.error is not None]
    if not pairs:
        return
    mine, theirs = (max(errors) for errors in zip(*pairs))
    larger = sum(ours > other for ours, other in pairs)
    yield (
        f"Exactness: our largest error against float64 is {mine:.1e}, the others' {theirs:.1e}; ours is the larger one "
        f"in {larger or 'none'} of {w.counted(len(pairs), 'comparison')}."
    )


def _roof(place: Place) -> Iterator[str]:
    found = [(share, title(case)) for case in place.cases if case.ours and (share := case.of_roof(case.ours))]
    if found:
        (low, where_low), (high, where_high) = min(found), max(found)
        reached = f"{w.percent(high)} of our time in {where_high}"
        reached += f", {w.percent(low)} in {where_low}" if len(found) > 1 else ""
        beyond = "; more than 100 % means that ours is faster than that library" if high > 1 else ""
        yield (
            "Headroom: at the pace of the fastest product and copy of a library seen here, the arithmetic and bytes "
            f"of a function would take {reached}{beyond}."
        )


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of x that y grows with, by least squares of the logarithms; None for fewer than three points."""
    found = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in found}) < 3:
        return None
    return statistics.linear_regression(*zip(*found)).slope


def _growth(place: Place) -> Iterator[str]:
    for curve in place.curves:
        axis, op = curve[0].axis, curve[0].op
        cases = [case for case in curve if case.ours]
        power = exponent([(c.value, c.ours.time or 0.0) for c in cases if c.ours])
        if power is None:
            continue
        low, high = (w.number(c.value) for c in (cases[0], cases[-1]))
        said = f"{w.capital(noun(op))} ({curve[0].workload}), {AXES.get(axis, axis)} from {low} to {high}: "
        said += f"our time goes about as the power {power:.2f}"
        ends = [found[0] if (found := _compared([c])) else None for c in (cases[0], cases[-1])]
        told = [
            f"at {w.number(c.value)} "
            + (
                f"the fastest other ({named(end[1])}) takes {w.times(end[2])} times ours"
                if end
                else "no other has a time"
            )
            for c, end in zip((cases[0], cases[-1]), ends)
        ]
        yield f"{said}; {told[0]}, {told[1]}."


def along(tracks: list[Track]) -> Iterator[str]:
    """How memory and time of each method go along a video, or its quality."""
    for track in tracks:
        tokens = f"{track.features.get('height', '?')} x {track.features.get('width', '?')} tokens a frame"
        said = f"Along a video of {tokens}, {track.method}: "
        if track.protocol == "fig1":
            said += _lasted([point for point in track.points if point.get("bytes")])
        else:
            judged = [point for point in track.points if point.get("quality") is not None]
            told = [f"{w.figure(p['quality'])} up to frame {p['frame']:,}" for p in (judged[:1] + judged[1:][-1:])]
            said += f"J is {w.listed(told)}" if told else "nothing was judged"
        yield said + (f" ({track.reason})." if track.reason else ".")


def _lasted(points: list[dict[str, float]]) -> str:
    if not points:
        return "nothing was measured"
    first, last = points[0], points[-1]
    if first is last:
        return f"measured at frame {first['frame']:,} alone, where it holds {w.size(first['bytes'])}"
    said = f"from frame {first['frame']:,} to frame {last['frame']:,} its memory "
    # What is allocated beforehand need not be the same to the byte.
    if abs(last["bytes"] / first["bytes"] - 1) < 0.02:
        said += f"stays at {w.size(last['bytes'])}"
    else:
        said += f"goes from {w.size(first['bytes'])} to {w.size(last['bytes'])}"
    if first.get("seconds") and last.get("seconds"):
        slower = last["seconds"] / first["seconds"]
        same = 1 / w.SAME < slower < w.SAME
        said += (
            f", and at its end a frame takes {'about' if same else f'{w.times(slower)} times'} as long as at its start"
        )
    return said


def claimed(claims: list[Claim]) -> Iterator[str]:
    """The paper's claims and what was measured."""
    for claim in claims:
        told = {True: "it holds", False: "it does not hold"}.get(claim.holds, "not decided")  # type: ignore[call-overload]
        yield f"{w.capital(claim.claim)}: {claim.paper} in the paper, {claim.found} measured; {told}."


def _ratios(case: Case) -> list[tuple[Row, float]]:
    return [(row, ratio) for row in beside(case) if (ratio := case.ratio(row)) is not None]
