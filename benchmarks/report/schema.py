"""What a result file holds, as dataclasses: the harness and the studies write them, the report
reads them back.

A file has a :class:`ResultLine` a line, as JSON. Its ``kind`` says of what its results are: "ops"
(also where it is missing), "base" and "scaling" of :class:`CaseResult`, "length" of
:class:`VideoTrack`, "claims" of :class:`Claim`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from xmemk.benchmarks.peers.workloads import WORKLOADS, op_name, sizes_of

NO_USAGE = "(no usage)"  # in the name of a peer whose result lacks it
OTHER_METHOD = "another method"  # in brackets in a peer's name, or at the beginning of its reason
NOT_REACHED = "not reached in the time given"
FEWEST_FOR_SPREAD = 4  # rounds
DERIVED = ("median", "spread", "ratio", "device_seconds", "cold_seconds")  # written beside what they follow from

AnyStored = TypeVar("AnyStored", bound="Stored")


@dataclass
class Stored:
    """A dataclass that is written as a JSON object. Where it was read from is not written."""

    def to_json(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in ("source", "setting")}

    @classmethod
    def from_json(cls: type[AnyStored], stored: dict[str, Any]) -> AnyStored:
        """Keys that this version does not know are ignored.

        Raises TypeError where one is missing.
        """
        names = [f.name for f in fields(cls)]
        return cls(**{name: stored[name] for name in names if stored.get(name) is not None})


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.to_json() if isinstance(value, Stored) else value


@dataclass
class Measurement(Stored):
    """One peer on one case. ``reason`` says why there is no time, or is a remark.

    seconds: one a round; on a GPU the device's, from a warm cache. cold: the same after the cache
    was overwritten. host_seconds: what it takes to issue a call. ratios: to ours in the same round.
    error: the largest against float64, None where the result is no whole one. status: "exact",
    "rounded", "WRONG" or "". extrapolated_seconds: from smaller sizes, where nothing was measured.
    """

    peer: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)
    status: str = ""
    error: float | None = None
    relative_error: float | None = None
    reason: str = ""
    extra_bytes: int | None = None
    host_seconds: float | None = None
    of_roof: float | None = None
    extrapolated_seconds: float | None = None
    ratios: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return _median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < FEWEST_FOR_SPREAD:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / statistics.median(self.seconds)

    @property
    def ratio(self) -> float | None:
        return _median(self.ratios)

    @property
    def cold_seconds(self) -> float | None:
        return _median(self.cold)

    @property
    def device_seconds(self) -> float | None:
        """The median on a GPU."""
        return self.median if self.host_seconds is not None else None

    @property
    def kind(self) -> str:
        """What its result is, beside ours."""
        if self.reason.startswith(OTHER_METHOD) or f"({OTHER_METHOD})" in self.peer:
            return OTHER_METHOD
        if self.status != "WRONG" and NO_USAGE in self.peer:
            return "no usage"
        return self.status or ("part of the work" if self.error is None and not self.ours else "exact")

    @property
    def whole(self) -> bool:
        """Its result is all that ours is."""
        return self.error is not None and NO_USAGE not in self.peer and self.status != "WRONG"

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {name: getattr(self, name) for name in DERIVED}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Measurement:
        """Earlier versions wrote the medians alone."""
        medians = {"seconds": "median", "ratios": "ratio", "cold": "cold_seconds"}
        alone = {key: [stored[m]] for key, m in medians.items() if stored.get(m) is not None and not stored.get(key)}
        return super().from_json(stored | alone)


@dataclass
class CaseResult(Stored):
    """One op on one workload, a row a peer. ``axis`` and ``value``: a point of a curve."""

    op: str
    workload: str
    objects: int
    dtype: str
    device: str
    threads: int
    rows: list[Measurement] = field(default_factory=list)
    tokens: int | None = None
    queries: int | None = None
    top_k: int | None = None
    flops: float | None = None
    bytes: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    tested: bool | str | None = None
    axis: str = ""
    value: float = 0.0
    setting: str = ""  # its device or threads, where those of its machine's cases differ
    source: Source | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Results of two runs are of the same case where this is the same."""
        named = (self.op, self.workload, self.objects, self.dtype, self.device, self.threads)
        return (*named, self.axis, self.value) if self.axis else named

    @property
    def ours(self) -> Measurement | None:
        """The first of ours that has a time and is right: what the others are compared with."""
        return next((row for row in self.timed if row.ours and row.status != "WRONG"), None)

    @property
    def timed(self) -> list[Measurement]:
        return [row for row in self.rows if row.seconds]

    @property
    def rivals(self) -> list[Measurement]:
        """The others with a whole result, the fastest first."""
        return sorted((r for r in self.timed if not r.ours and r.whole), key=lambda row: row.median or 0.0)

    def row(self, *peers: str) -> Measurement | None:
        """The first that has a time and one of these names."""
        return next((row for row in self.timed if row.peer in peers), None)

    def ratio(self, row: Measurement) -> float | None:
        """How many times our time a row took."""
        if row.ratio is not None:
            return row.ratio
        ours = self.ours
        return row.median / ours.median if ours and ours.median and row.median is not None else None

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> CaseResult:
        """Earlier versions had other names of ops, and some no sizes: those of the workload."""
        op = op_name(stored["op"])
        sizes = sizes_of(op, WORKLOADS[stored["workload"]]) if stored["workload"] in WORKLOADS else {}
        known = {name: value for name, value in stored.items() if value is not None}
        rows = [Measurement.from_json(row) for row in stored["rows"]]
        return super().from_json(sizes | known | {"op": op, "rows": rows})


@dataclass
class VideoTrack(Stored):
    """A method along a video: measured points by frame, and points computed beyond them."""

    protocol: str
    method: str
    points: list[dict[str, Any]]
    ours: bool = False
    what: str = ""
    features: dict[str, int] = field(default_factory=dict)
    long_term: int | None = None
    computed: list[dict[str, Any]] = field(default_factory=list)
    increase: dict[str, float] | None = None
    fit: dict[str, float] | None = None
    judged_frames: list[int] | None = None
    reason: str = ""
    source: Source | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.protocol, self.method, *sorted(self.features.items())

    @property
    def grid(self) -> str:
        """Tokens of a frame: 30 x 54."""
        return f"{self.features.get('height', '?')} x {self.features.get('width', '?')}"

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> VideoTrack:
        track = super().from_json(stored)
        track.points.sort(key=lambda point: point["frame"])
        return track


@dataclass
class Claim(Stored):
    """One claim of the paper.

    ``measured`` and ``holds`` are None where nothing could be measured.
    """

    claim: str
    paper: str
    measured: float | None = None
    unit: str = ""
    how: str = ""
    holds: bool | None = None
    source: Source | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.claim,)


Result = CaseResult | VideoTrack | Claim
RESULTS: dict[str, type[CaseResult] | type[VideoTrack] | type[Claim]] = {
    "ops": CaseResult, "base": CaseResult, "scaling": CaseResult, "length": VideoTrack, "claims": Claim
}  # fmt: skip


@dataclass
class ResultLine(Stored):
    """A line of a result file. losses: who made the GPU unusable. stopped: what ended it early."""

    kind: str
    date: str
    commit: str
    machine: dict[str, str]
    results: list[Any] = field(default_factory=list)
    command: str = ""
    roof: dict[str, float] | None = None
    base: dict[str, str] | None = None
    losses: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        stored = super().to_json()
        return {name: value for name, value in stored.items() if value or name == "results"}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ResultLine:
        """Results of a kind that this version does not know are left as they are."""
        run = super().from_json({"kind": "ops"} | stored)
        if run.kind in RESULTS:
            run.results = [RESULTS[run.kind].from_json(result) for result in stored["results"]]
        return run


@dataclass(frozen=True)
class Source:
    """The line of a file that a figure comes from."""

    file: str
    line: int
    run: ResultLine

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"
