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
    return f"{noun(case.op)} ({case.workload}{objects}{dtype})"


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
    return PEERS.get(row.peer, row.peer)


def headline(place: Place) -> str:
    case = main_case(place)
    if case is None:
        return "What was measured"
    return f"{w.capital(noun(case.op))}: {w.listed([f'{w.speed(r)} {known(row)}' for row, r in _ratios(case)])}"


def answer(place: Place) -> list[str]:
    """How much faster, how much less memory, and whether that holds throughout: at most three sentences."""
    case = main_case(place)
    said = []
    if case is not None and case.ours is not None:
        compared = w.listed([f"{w.speed(r)} {known(row)}" for row, r in _ratios(case)])
        said.append(
            f"On {place.name} with {w.counted(case.threads, 'thread')}, xmemk does the {noun(case.op)} of "
            f"{case.workload} ({sizes(case)}) in {w.duration(case.ours.time or 0.0)}: {compared}."
        )
        mine, others = case.ours.extra_bytes, [row for row in beside(case) if row.extra_bytes is not None]
        if mine is not None and others:
            shares = w.listed([f"{w.share(mine, row.extra_bytes or 0)} {known(row)}" for row in others])
            said.append(f"Beyond its inputs that takes {w.size(mine)} of memory: {shares}.")
    said += list(_throughout(place))[:1]
    return said


def _throughout(place: Place) -> Iterator[str]:
    compared = [(case, case.rivals[0], r) for case in place.cases if case.rivals and (r := case.ratio(case.rivals[0]))]
    if not compared:
        return
    slower = [(case, row, r) for case, row, r in compared if r < 1 / w.SAME]
    level = [r for _, _, r in compared if 1 / w.SAME <= r < w.SAME]
    faster = sorted(r for _, _, r in compared if r >= w.SAME)
    parts = []
    if faster:
        parts.append(f"faster in {_of(faster, compared)}, by {w.span(faster[0], faster[-1])} times")
    if level:
        parts.append(f"about equal in {_of(level, compared)}")
    if slower:
        case, row, r = min(slower, key=lambda found: found[2])
        worst = f"{title(case)}, where {row.peer} takes {w.times(r)} of its time"
        parts.append(f"slower in {_of(slower, compared)}, at worst in the {worst}")
    yield f"Beside the fastest other way to the same result it is {'; '.join(parts)}."


def _of(some: Sequence[object], whole: Sequence[object]) -> str:
    if len(some) < len(whole):
        return f"{len(some)} of {len(whole)} cases"
    return "the one case measured" if len(whole) == 1 else f"all {len(whole)} cases"


def conclusions(place: Place) -> list[str]:
    """What a reader may take from the figures."""
    found = [*_by_op(place), *_memory(place), *_error(place), *_roof(place), *_growth(place)]
    return [*found, *along(place.tracks), *claimed(place.claims)]


def _by_op(place: Place) -> Iterator[str]:
    for op in dict.fromkeys(case.op for case in place.cases):
        cases = [case for case in place.cases if case.op == op and case.ours]
        found = [(case, case.rivals[0], r) for case in cases if case.rivals and (r := case.ratio(case.rivals[0]))]
        if not found:
            continue
        rivals = w.listed(list(dict.fromkeys(row.peer for _, row, _ in found)))
        ratios = [r for *_, r in found]
        cases_said = "in the one case" if len(found) == 1 else f"over {len(found)} cases"
        low, high = min(ratios), max(ratios)
        if low >= w.SAME:
            verdict = f"{w.span(low, high)} times as fast as the fastest other ({rivals}) {cases_said} measured"
        elif high <= 1 / w.SAME:
            verdict = f"slower than the fastest other ({rivals}) {cases_said} measured, "
            verdict += f"whose time is {w.span(low, high)} of ours"
        else:
            verdict = f"{w.span(low, high)} times as fast as the fastest other ({rivals}) {cases_said}: "
            verdict += "no clear advantage" if len(found) == 1 or high < 1.2 else "it depends on the case"
        unclear = [case for case, row, r in found if abs(r - 1) <= (case.ours.spread if case.ours else 0) + row.spread]
        if unclear and len(unclear) < len(found):
            verdict += f"; in {len(unclear)} of them the difference is within the spread of the measurements"
        elif unclear:
            verdict += "; the difference is within the spread of the measurements"
        yield f"{w.capital(noun(op))}: {verdict}."


def _memory(place: Place) -> Iterator[str]:
    shares = []
    for case in place.cases:
        mine = case.ours.extra_bytes if case.ours else None
        shares += [(row.extra_bytes / mine, case, row) for row in case.rivals if mine and row.extra_bytes]
    if not shares:
        return
    (low, case, row), (high, *_) = min(shares, key=lambda s: s[0]), max(shares, key=lambda s: s[0])
    more = sum(ratio < 1 for ratio, *_ in shares)
    compared = w.counted(len(shares), "comparison")
    worst = f"{row.peer} in {title(case)}, {w.times(low)} times"
    if more == 0:
        yield f"Memory: beyond the inputs, others take up to {w.times(high)} times ours; nearest to us comes {worst}."
    else:
        said = f"Memory: beyond the inputs, others take less than ours in {more} of {compared}"
        yield f"{said}, at the least {worst}; at the most they take {w.times(high)} times ours."


def _error(place: Place) -> Iterator[str]:
    pairs = []
    for case in place.cases:
        if case.ours and case.ours.error is not None:
            pairs += [(case.ours.error, row.error, case, row) for row in case.rivals if row.error]
    if not pairs:
        return
    smaller = sum(mine <= theirs for mine, theirs, *_ in pairs)
    mine = max(pair[0] for pair in pairs)
    theirs = max(pair[1] or 0.0 for pair in pairs)
    yield (
        f"Exactness: our largest error against float64 is {mine:.1e}, the others' {theirs:.1e}; ours is not the larger "
        f"one in {smaller} of {w.counted(len(pairs), 'comparison')}."
    )


def _roof(place: Place) -> Iterator[str]:
    found = [(share, title(case)) for case in place.cases if case.ours and (share := case.of_roof(case.ours))]
    if found:
        (low, where_low), (high, where_high) = min(found), max(found)
        reached = f"{w.percent(high)} in {where_high}"
        reached += f", {w.percent(low)} in {where_low}" if len(found) > 1 else ""
        yield (
            f"Headroom: of the fastest product and copy of a library seen here, it reaches {reached}; no product of a "
            "library tried here was faster, which does not say that none can be."
        )


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The power of x that y grows with, by least squares of the logarithms; None for fewer than three points."""
    found = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in found}) < 3:
        return None
    return statistics.linear_regression(*zip(*found)).slope


def _growth(place: Place) -> Iterator[str]:
    for axis, op in dict.fromkeys((case.axis, case.op) for case in place.scaling):
        cases = [c for c in place.scaling if (c.axis, c.op) == (axis, op) and c.ours]
        power = exponent([(c.value, c.ours.time or 0.0) for c in cases if c.ours])
        if power is None:
            continue
        low, high = (w.number(c.value) for c in (cases[0], cases[-1]))
        said = f"{w.capital(noun(op))}, {AXES.get(axis, axis)} from {low} to {high}: "
        said += f"our time goes as the power {power:.2f}"
        ends = [(c, c.rivals[0], r) for c in (cases[0], cases[-1]) if c.rivals and (r := c.ratio(c.rivals[0]))]
        if len(ends) == 2:
            (_, one, first), (_, other, last) = ends
            said += f"; the fastest other takes {w.times(first)} times ours at one end ({one.peer}), "
            said += f"{w.times(last)} at the other ({other.peer})"
        elif ends:
            alone = cases[-1] if ends[0][0] is cases[0] else cases[0]
            said += f"; at {w.number(alone.value)} nobody else ran"
        yield said + "."


def along(tracks: list[Track]) -> Iterator[str]:
    """How memory and time of each method go along a video."""
    for track in tracks:
        points = [point for point in track.points if point.get("bytes")]
        if track.protocol != "fig1" or len(points) < 2:
            continue
        first, last = points[0], points[-1]
        # What is allocated beforehand need not be the same to the byte.
        if abs(last["bytes"] / first["bytes"] - 1) < 0.02:
            memory = f"its memory stays at {w.size(last['bytes'])}"
        else:
            memory = f"its memory goes from {w.size(first['bytes'])} to {w.size(last['bytes'])}"
        tokens = f"{track.features.get('height', '?')} x {track.features.get('width', '?')} tokens a frame"
        said = f"Along a video of {tokens}, {track.method}: "
        said += f"from frame {first['frame']:,} to frame {last['frame']:,} {memory}"
        if first.get("seconds") and last.get("seconds"):
            slower = w.times(last["seconds"] / first["seconds"])
            said += f", and at its end a frame takes {slower} times as long as at its start"
        yield said + (f"; then {track.reason}." if track.reason else ".")


def claimed(claims: list[Claim]) -> Iterator[str]:
    """The paper's claims and what was measured."""
    for claim in claims:
        told = {True: "it holds", False: "it does not hold"}.get(claim.holds, "not decided")  # type: ignore[call-overload]
        yield f"{w.capital(claim.claim)}: the paper says {claim.paper}. Measured: {claim.found}; {told}."


def _ratios(case: Case) -> list[tuple[Row, float]]:
    return [(row, ratio) for row in beside(case) if (ratio := case.ratio(row)) is not None]
