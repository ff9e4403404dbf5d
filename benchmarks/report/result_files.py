"""Result files written and read back: what was measured on which machine, from which line of which
file.

Where the same case was measured more than once on a machine, the last run counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xmemk.benchmarks.report.formatting import counted
from xmemk.benchmarks.report.schema import RESULTS, CaseResult, Claim, Result, ResultLine, Source, VideoTrack


@dataclass
class MachineResults:
    """Everything that was measured on one machine."""

    machine: dict[str, str]
    cases: list[CaseResult] = field(default_factory=list)
    scaling: list[CaseResult] = field(default_factory=list)
    tracks: list[VideoTrack] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    @property
    def sources(self) -> list[Source]:
        """The lines that its figures come from."""
        parts: tuple[Result, ...] = (*self.cases, *self.scaling, *self.tracks, *self.claims)
        return list({part.source.place: part.source for part in parts if part.source}.values())

    @property
    def curves(self) -> list[list[CaseResult]]:
        """The points of ``scaling``, grouped by all but the value of their axis."""
        curves: dict[tuple[Any, ...], list[CaseResult]] = {}
        for case in self.scaling:
            fixed = [x for axis, x in (("O", case.objects), ("threads", case.threads)) if axis != case.axis]
            key = (case.axis, case.op, case.workload, case.dtype, case.device, *fixed)
            curves.setdefault(key, []).append(case)
        return list(curves.values())

    @property
    def name(self) -> str:
        """The processor, or the GPU where something ran on it."""
        on_gpu = any(case.device.startswith("cuda") for case in (*self.cases, *self.scaling))
        processor = self.machine.get("processor", "this machine")
        return self.machine.get("GPU", processor) if on_gpu else processor

    def case(self, op: str, workload: str, objects: int = 1, **fixed: str | int) -> CaseResult | None:
        """The first of these; ``fixed``: its dtype, device or threads, too."""
        known = dict(fixed, op=op, workload=workload, objects=objects)
        return next((c for c in self.cases if all(getattr(c, n) == value for n, value in known.items())), None)


def append(run: ResultLine, path: Path | None) -> None:
    """A line of JSON at the end of a file; None: nowhere."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(run.to_json()) + "\n")


def runs_of(file: Path) -> Iterator[tuple[int, ResultLine]]:
    """The runs of a file and their lines. Raises ValueError that names a line which is none."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield number, ResultLine.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as wrong:
            problem = f"{type(wrong).__name__}: {wrong}"
            raise ValueError(f"{file}, line {number}: wanted a run as JSON, got {problem}") from wrong


def read(files: Iterable[Path], after: int = 0) -> tuple[list[MachineResults], list[str]]:
    """The machines of some result files with their newest figures, and what was passed over.

    ``after``: so many lines at the beginning of each file are of earlier runs, and are passed over.
    Raises ValueError for what is no result file.
    """
    files = list(files)
    newest: dict[tuple[Any, ...], tuple[tuple[str, int, int], Result]] = {}
    passed_over = []
    for at, file in enumerate(files):
        for number, run in runs_of(file):
            source = Source(file.name, number, run)
            if number <= after:
                earlier = f"earlier runs, the first {'line' if after == 1 else f'{after:,} lines'} of {file.name}"
                passed_over += [earlier] if number == 1 else []
            elif run.kind == "base":
                passed_over.append(f"{source.place} compares two revisions, which `run.py --base` shows itself")
            elif run.kind not in RESULTS:
                passed_over.append(f"{source.place} holds {run.kind!r}, which this version does not know")
            else:
                for result in run.results:
                    result.source = source
                    key = (run.machine.get("processor", ""), run.machine.get("GPU", ""), run.kind, *result.key)
                    if key not in newest or newest[key][0] <= (run.date, at, number):
                        newest[key] = ((run.date, at, number), result)
    machines: dict[tuple[str, str], MachineResults] = {}
    for (processor, gpu, kind, *_), (_, result) in newest.items():
        assert result.source is not None
        machine = machines.setdefault((processor, gpu), MachineResults(result.source.run.machine))
        name = {"scaling": "scaling", "length": "tracks", "claims": "claims"}.get(kind, "cases")
        getattr(machine, name).append(result)
    if not machines:
        raise ValueError(f"no results in {', '.join(map(str, files)) or 'no file'}")
    for machine in machines.values():
        machine.scaling.sort(key=lambda case: (case.axis, case.op, case.value))
        devices = {case.device for case in machine.cases}
        threads = {case.threads for case in machine.cases if case.device == "cpu"}
        for case in machine.cases:
            setting = [case.device] if len(devices) > 1 else []
            setting += [counted(case.threads, "thread")] if case.device == "cpu" and len(threads) > 1 else []
            case.setting = ", ".join(setting)
    return list(machines.values()), passed_over
