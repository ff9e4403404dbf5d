"""Result files read back: what was measured, from which line of which file, and on which machine.

A result file has a run a line, as JSON; ``kind`` says what it holds: "ops" (also where it is missing), "scaling",
"length" or "claims". Where the same case was measured more than once on a machine, the last run counts.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xmemk.benchmarks.peers.workloads import WORKLOADS
from xmemk.benchmarks.report import words as w

KINDS = ("ops", "scaling", "length", "claims")
NO_USAGE = "(no usage)"  # in the name of a peer whose result lacks it
ANOTHER = "another method"  # in brackets in the name of a peer that does something else, or beginning its reason


@dataclass(frozen=True)
class Source:
    """The line of a file that a figure comes from, and the run that wrote it."""

    file: str
    line: int
    date: str
    commit: str
    command: str
    machine: dict[str, str]
    roof: dict[str, float] | None = None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Row:
    """One way to do a case. ``error`` None: not a whole result. ``reason``: why there is no time, or a remark.

    ``status``: "WRONG" where the result is, though there may be a time; "rounded" where it is near. Without a time
    there may be ``extrapolated_seconds``, from smaller sizes.
    """

    peer: str
    ours: bool = False
    seconds: tuple[float, ...] = ()
    median: float | None = None
    spread: float = 0.0
    device_seconds: float | None = None
    cold_seconds: float | None = None
    host_seconds: float | None = None
    error: float | None = None
    reason: str = ""
    extra_bytes: int | None = None
    ratio: float | None = None
    of_roof: float | None = None
    status: str = ""
    extrapolated_seconds: float | None = None

    @property
    def time(self) -> float | None:
        """The device's time where it was taken, else the clock's."""
        return self.median if self.device_seconds is None else self.device_seconds

    @property
    def another(self) -> bool:
        """Another method, whose results are not ours."""
        return self.reason.startswith(ANOTHER) or f"({ANOTHER})" in self.peer

    @property
    def whole(self) -> bool:
        """Its result is all that ours is."""
        return self.error is not None and NO_USAGE not in self.peer and self.status != "WRONG"


@dataclass(frozen=True)
class Case:
    """One op on one workload, and everybody who did it."""

    op: str
    workload: str
    objects: int
    dtype: str
    device: str
    threads: int
    rows: tuple[Row, ...]
    source: Source
    tokens: int | None = None
    queries: int | None = None
    top_k: int | None = None
    flops: float | None = None
    bytes: float | None = None
    tested: bool | str | None = None
    axis: str = ""
    value: float = 0.0
    setting: str = ""  # its device or threads, where those of its machine's cases differ

    @property
    def ours(self) -> Row | None:
        """The first of ours that has a time and is right: what the others are held against."""
        return next((row for row in self.rows if row.ours and row.time is not None and row.status != "WRONG"), None)

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.time is not None]

    @property
    def rivals(self) -> list[Row]:
        """The others that did the same to the end, the fastest first."""
        found = [row for row in self.timed if not row.ours and row.whole]
        return sorted(found, key=lambda row: row.time or 0.0)

    def row(self, peer: str) -> Row | None:
        return next((row for row in self.timed if row.peer == peer), None)

    def ratio(self, row: Row) -> float | None:
        """How many times our time a row took."""
        if row.ratio is not None:
            return row.ratio
        ours = self.ours
        return None if ours is None or not ours.time or row.time is None else row.time / ours.time

    def of_roof(self, row: Row) -> float | None:
        """The share of its time that the arithmetic and the bytes of the op would need at the machine's best."""
        if row.of_roof is not None:
            return row.of_roof
        roof = self.source.roof
        if not roof or row.time is None or not (self.flops or self.bytes):
            return None
        arithmetic = (self.flops or 0.0) / (1e9 * roof["gflops"])
        return max(arithmetic, (self.bytes or 0.0) / (1e9 * roof["gbytes_per_s"])) / row.time


@dataclass(frozen=True)
class Track:
    """A method along a video: its points in order of frames, and what was computed beyond them."""

    protocol: str
    method: str
    ours: bool
    features: dict[str, int]
    points: list[dict[str, float]]
    computed: list[dict[str, float]]
    reason: str
    source: Source


@dataclass(frozen=True)
class Claim:
    claim: str
    paper: Any
    measured: Any
    unit: str
    how: str
    holds: bool | None
    source: Source

    @property
    def found(self) -> str:
        """What was measured, with its unit."""
        if self.measured is None:
            return "nothing"
        number = w.number(self.measured) if isinstance(self.measured, (int, float)) else str(self.measured)
        return f"{number} {self.unit}".strip()


@dataclass
class Place:
    """Everything that was measured on one machine."""

    machine: dict[str, str]
    cases: list[Case] = field(default_factory=list)
    scaling: list[Case] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    @property
    def sources(self) -> list[Source]:
        """The lines that its figures come from."""
        found = [part.source for part in (*self.cases, *self.scaling, *self.tracks, *self.claims)]
        return list({source.place: source for source in found}.values())

    @property
    def curves(self) -> list[list[Case]]:
        """The points of ``scaling``, those together that differ in the value of their axis alone."""
        found: dict[tuple[Any, ...], list[Case]] = {}
        for case in self.scaling:
            held = [("O", case.objects), ("threads", case.threads)]
            alike = (case.axis, case.op, case.workload, case.dtype, case.device)
            found.setdefault((*alike, *(x for axis, x in held if axis != case.axis)), []).append(case)
        return list(found.values())

    @property
    def name(self) -> str:
        """The processor, or the GPU where something ran on it."""
        on_gpu = any(case.device.startswith("cuda") for case in (*self.cases, *self.scaling))
        return (
            self.machine["GPU"] if on_gpu and "GPU" in self.machine else self.machine.get("processor", "this machine")
        )

    @property
    def remarks(self) -> list[tuple[str, str, str]]:
        """Who could not run or has something to be said about it: (who, where, why), once for each."""
        found: dict[tuple[str, str], list[str]] = {}
        for case in (*self.cases, *self.scaling):
            where = f"{case.axis} = {case.value:,.0f}, {case.op}" if case.axis else f"{case.op} {case.workload}"
            where += f", {case.objects} objects" if case.objects != 1 and not case.axis else ""
            for row in case.rows:
                if row.reason:
                    found.setdefault((row.peer, row.reason), []).append(where)
        return [(who, "; ".join(dict.fromkeys(where)), why) for (who, why), where in found.items()]

    def case(self, op: str, workload: str, objects: int = 1, **also: str | int) -> Case | None:
        """The first of these; ``also``: its dtype, device or threads, too."""
        found = (c for c in self.cases if (c.op, c.workload, c.objects) == (op, workload, objects))
        return next((c for c in found if all(getattr(c, name) == value for name, value in also.items())), None)


def read(files: Iterable[Path], after: int = 0) -> tuple[list[Place], list[str]]:
    """The machines of some result files with their newest figures, and what was passed over. ValueError for what is no
    result file. ``after``: so many lines at the beginning of each file are of earlier runs, and are passed over.
    """
    found: dict[tuple[Any, ...], tuple[tuple[str, int], Any]] = {}
    passed_over = []
    for number, (source, kind, results) in enumerate(_lines(files)):
        if source.line <= after:
            if source.line == 1:
                first = "line" if after == 1 else f"{after:,} lines"
                passed_over.append(f"earlier runs, the first {first} of {source.file}")
            continue
        if kind == "base":
            passed_over.append(f"{source.place} compares two revisions, which `run.py --base` shows itself")
            continue
        if kind not in KINDS:
            passed_over.append(f"{source.place} holds {kind!r}, which this version does not know")
            continue
        for result in results:
            part = _part(kind, result, source)
            key = (_machine_key(source.machine), kind, *_key(part))
            if key not in found or found[key][0] <= (source.date, number):
                found[key] = ((source.date, number), part)
    places: dict[Any, Place] = {}
    for (machine, kind, *_), (_, part) in found.items():
        place = places.setdefault(machine, Place(part.source.machine))
        {"scaling": place.scaling, "length": place.tracks, "claims": place.claims}.get(kind, place.cases).append(part)
    if not places:
        raise ValueError(f"no results in {', '.join(map(str, files)) or 'no file'}")
    for place in places.values():
        place.scaling.sort(key=lambda case: (case.axis, case.op, case.value))
        _tell_apart(place)
    return list(places.values()), passed_over


def _tell_apart(place: Place) -> None:
    """Gives each case its setting."""
    devices = {case.device for case in place.cases}
    threads = {case.threads for case in place.cases if case.device == "cpu"}
    for at, case in enumerate(place.cases):
        told = [case.device] if len(devices) > 1 else []
        told += [w.counted(case.threads, "thread")] if case.device == "cpu" and len(threads) > 1 else []
        place.cases[at] = replace(case, setting=", ".join(told))


def _lines(files: Iterable[Path]) -> Iterator[tuple[Source, str, list[dict[str, Any]]]]:
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                run = json.loads(line)
                said = [run["date"], run["commit"], run.get("command", ""), run["machine"], run.get("roof")]
                yield Source(file.name, number, *said), run.get("kind", "ops"), run["results"]
            except (ValueError, TypeError, KeyError) as wrong:
                raise ValueError(
                    f"{file}, line {number}: wanted a run as JSON, got {type(wrong).__name__}: {wrong}"
                ) from wrong


def _part(kind: str, result: dict[str, Any], source: Source) -> Case | Track | Claim:
    try:
        if kind == "claims":
            known = ("claim", "paper", "measured", "unit", "how", "holds")
            return Claim(*(result.get(name) for name in known), source)  # type: ignore[arg-type]
        if kind == "length":
            told = (result.get("computed") or [], result.get("reason") or "")
            points = sorted(result["points"], key=lambda point: point["frame"])
            named = (result["protocol"], result["method"], bool(result.get("ours")), result.get("features") or {})
            return Track(*named, points, *told, source)
        return _case(result, source)
    except (KeyError, TypeError) as wrong:
        raise ValueError(f"{source.place}: a result of kind {kind!r} lacks or misuses {wrong}") from wrong


def _case(result: dict[str, Any], source: Source) -> Case:
    rows = tuple(_row(row) for row in result["rows"])
    sizes = _sizes(result["op"], result["workload"])
    optional = {
        name: result[name] if result.get(name) is not None else sizes.get(name)
        for name in ("tokens", "queries", "top_k", "flops", "bytes", "tested", "axis", "value")
        if result.get(name) is not None or name in sizes
    }
    named = {name: result[name] for name in ("op", "workload", "objects", "dtype", "device", "threads")}
    return Case(rows=rows, source=source, **named, **optional)


def _row(row: dict[str, Any]) -> Row:
    seconds = tuple(row.get("seconds") or ())
    median = row.get("median")
    if median is None and seconds:
        median = statistics.median(seconds)
    spread = row.get("spread")
    if spread is None:
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 3 else (0.0, 0.0, 0.0)
        spread = (high - low) / 2 / median if median else 0.0
    kept = ("ours", "device_seconds", "cold_seconds", "host_seconds", "error", "reason", "extra_bytes", "ratio")
    kept += ("of_roof", "status", "extrapolated_seconds")
    known = {name: row[name] for name in kept if row.get(name) is not None}
    return Row(peer=row["peer"], seconds=seconds, median=median, spread=spread, **known)


def _sizes(op: str, workload: str) -> dict[str, int]:
    """Of the lines that do not tell them: those of the workload of that name."""
    if workload not in WORKLOADS:
        return {}
    known = WORKLOADS[workload]
    tokens = {"consolidate": known.candidates, "select": known.candidates, "evict": known.long_term}.get(
        op, known.tokens
    )
    if op in ("select", "evict"):
        return {"tokens": tokens}
    if op == "consolidate":
        return {"tokens": tokens, "queries": known.prototypes}
    return {"tokens": tokens, "queries": known.queries} | ({} if op.endswith("dense") else {"top_k": known.top_k})


def _machine_key(machine: dict[str, str]) -> tuple[str, str]:
    return machine.get("processor", ""), machine.get("GPU", "")


def _key(part: Case | Track | Claim) -> tuple[Any, ...]:
    if isinstance(part, Claim):
        return (part.claim,)
    if isinstance(part, Track):
        return part.protocol, part.method, *sorted(part.features.items())
    named = (part.op, part.workload, part.objects, part.dtype, part.device, part.threads)
    # A scaling point is told by its place on the axis.
    return (*named, part.axis, part.value) if part.axis else named
