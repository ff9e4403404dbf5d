"""The cases of a run beside their peers, in sweeps: every case is measured in each, on inputs made anew.

A machine that others use is slow for seconds or minutes at a time, and not for all peers alike, so the rounds of a case
are spread over the whole run. The first sweep checks the peers and measures their memory, too.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from xmemk.benchmarks.harness import ops, tables
from xmemk.benchmarks.harness.costs import Cost, Roof, measure_roof
from xmemk.benchmarks.harness.measure import Row, in_fresh_process, time_again, time_peers
from xmemk.benchmarks.harness.stopwatch import first_line
from xmemk.benchmarks.harness.suites import Item, Suite
from xmemk.benchmarks.harness.tables import console
from xmemk.benchmarks.peers import Peer


@dataclass
class Entry:
    """A case of a run: what it is made of, its result in the run, the rows that are measured now and their peers."""

    item: Item
    arguments: dict[str, Any]
    result: dict[str, Any]
    peers: list[Peer]
    rows: list[Row] = field(default_factory=list)
    cost: Cost | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)  # rows of the peers that do not compile


def beside_peers(run: dict[str, Any], suite: Suite, options: argparse.Namespace, green: dict[str, bool | str]) -> bool:
    """Measures the cases of ``suite`` into run["results"], which is complete after each case; whether ours was right
    everywhere."""
    sweeps = Sweeps(run, suite, options)
    for compiled in [False, True] if suite.compiled_last else [None]:
        entries = [e for item in suite.items if (e := sweeps.entry(item, compiled, green)) is not None]
        for number in range(sweeps.count):
            for entry in entries:
                if number == 0:
                    sweeps.begin(entry, refused=entry.item.op not in green)
                else:
                    sweeps.go_on(entry, number)
                sweeps.note(entry, last=number == sweeps.count - 1, compiled=bool(compiled))
                torch.compiler.reset()
    return not any(row["ours"] and row["status"] in ("WRONG", "rounded") for r in run["results"] for row in r["rows"])


class Sweeps:
    """What all cases of a run share."""

    def __init__(self, run: dict[str, Any], suite: Suite, options: argparse.Namespace) -> None:
        self.run, self.suite, self.options = run, suite, options
        self.count = max(1, min(suite.sweeps, suite.rounds))
        self.on_cpu = torch.device(options.device).type == "cpu"
        self.roof: Roof | None = None
        self._until = None if options.seconds is None else time.monotonic() + options.seconds
        self._by_item: dict[Item, dict[str, Any]] = {}

    @property
    def late(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def entry(self, item: Item, compiled: bool | None, green: dict[str, bool | str]) -> Entry | None:
        """``compiled`` True: the peers that compile, and ours to compare them with; False: the others; None: all."""
        found = ops.peers(item.op, self.options.backend, self.options.device)
        peers = [p for p in found if p.ours or not self.options.only or p.name in self.options.only]
        if compiled is not None:
            peers = [p for p in peers if p.ours or p.compiled == compiled]
        if compiled and all(p.ours for p in peers):
            return None
        arguments = self.suite.arguments(item, self.options.device)
        result = self._by_item.get(item)
        if result is None:
            result = {**arguments, "tested": green.get(item.op, "tests are red"), "rows": []}
            self._by_item[item] = result
            self.run["results"].append(result)
        return Entry(item, arguments, result, peers, earlier=result["rows"])

    def begin(self, entry: Entry, refused: bool) -> None:
        """Checks the peers, measures their memory, and times the first rounds."""
        late = self.late
        if late or refused:
            reason = "not reached in the time given" if late else "refused: the tests of this op are red"
            entry.rows = [Row(p.name, p.ours, reason=reason) for p in entry.peers]
            return
        try:
            made = ops.make(entry.arguments)
            if made.like is not None:
                self._measure_roof(made.like)
            entry.result |= made.sizes
            entry.cost = made.cost
            entry.rows = self._measured(made, entry)
        except (MemoryError, RuntimeError) as failure:  # the inputs themselves do not fit
            entry.rows = [Row(p.name, p.ours, reason=first_line(failure)) for p in entry.peers]

    def go_on(self, entry: Entry, number: int) -> None:
        """More rounds, unless there are none: of whole frames, whose set-up takes longer than they do."""
        if self.late or not any(row.seconds for row in entry.rows) or entry.item.op in ops.FRAME_OPS:
            return
        try:
            made = ops.make(entry.arguments)
        except (MemoryError, RuntimeError):
            return
        if number and made.like is not None and entry.item == self.suite.items[0]:
            self._measure_roof(made.like, again=True)
        before = f"{entry.item.op}, {entry.item.workload}, sweep {number + 1} of {self.count}: "
        with console.status("") as status:
            time_again(
                made.case,
                entry.peers,
                entry.rows,
                rounds=self._rounds(number),
                budget=self.suite.budget / self.count,
                in_all=self.suite.budget,
                said=lambda what: status.update(before + what),
            )

    def note(self, entry: Entry, last: bool, compiled: bool) -> None:
        """The rows into the run's results; after the last sweep as a table, too."""
        for row in entry.rows:
            if row.median and self.roof and entry.cost and row.peer != "similarity product alone":
                row.of_roof = entry.cost.seconds_at(self.roof) / row.median
        found = [row.as_dict() for row in entry.rows]
        entry.result["rows"] = entry.earlier + [row for row in found if not (compiled and row["ours"])]
        if last:
            tables.show({**entry.result, "rows": found})
        if self.options.results:
            tables.write(self.run, self.options.results, slug(self.run["machine"], self.options.device))

    def _rounds(self, number: int) -> int:
        """Those of all sweeps are the suite's."""
        return (self.suite.rounds + self.count - 1 - number) // self.count

    def _measure_roof(self, like: tuple[int, int, int], again: bool = False) -> None:
        """Once, and in each sweep again: the best is kept, since a bound can only be measured too low."""
        if self.roof is None or again:
            seconds = 0.15 if again else 0.5
            found = measure_roof(self.options.device, ops.DTYPES[self.suite.dtype], like, seconds)
            self.roof = found if self.roof is None else self.roof.best(found)
            self.run["roof"] = self.roof.as_dict()

    def _measured(self, made: ops.Made, entry: Entry) -> list[Row]:
        """One row a peer, in their order."""
        suite, options, arguments = self.suite, self.options, entry.arguments
        whole = entry.item.op in ops.FRAME_OPS  # in one sweep
        with console.status("") as status:

            def trial(peer: Peer) -> tuple[int | None, str]:
                # On a GPU a compiler is asked for at most once, in this process: a second process takes too long.
                if peer.compiled and not self.on_cpu:
                    return None, ""
                status.update(f"{peer.name}, in a process of its own")
                left = options.limit if self._until is None else self._until - time.monotonic()
                return in_fresh_process({**arguments, "peer": peer.name}, timeout=max(1.0, min(options.limit, left)))

            omitted = {p.name: why for p in entry.peers if (why := suite.omission(entry.item, p))}
            rows = time_peers(
                made.case,
                [p for p in entry.peers if p.name not in omitted],
                rounds=suite.rounds if whole else self._rounds(0),
                budget=suite.budget if whole else suite.budget / self.count,
                said=status.update,
                trial=trial if made.like is not None else None,
                judge=made.judge,
                until=self._until,
            )
            for row in rows:
                wanted = self.on_cpu and entry.item.op in suite.memory and entry.item.op not in ("select", "evict")
                if row.median is None or row.extra_bytes is not None or not wanted:
                    continue
                status.update(f"memory of {row.peer}")
                row.extra_bytes, why = in_fresh_process({**arguments, "peer": row.peer}, timeout=options.limit)
                row.reason = row.reason or (f"no memory figure: {why}" if why else "")
        by_name = {row.peer: row for row in rows}
        return [by_name.get(p.name) or Row(p.name, p.ours, reason=omitted[p.name]) for p in entry.peers]


def slug(machine: dict[str, str], device: str) -> str:
    """The name of the result files of a machine."""
    name = machine["GPU"] if torch.device(device).type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
