"""The cases of a run beside their peers, in sweeps: every case is measured in each, on inputs made anew.

A machine that others use is slow for seconds or minutes at a time, and not for all peers alike, so the rounds of a case
are spread over the whole run. The first sweep checks the peers and measures their memory, too.

A peer that takes the device from this process, as by an illegal memory access, is not tried again in its case; a fresh
process goes on with the others.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from xmemk.benchmarks.harness import ops, tables
from xmemk.benchmarks.harness.afresh import MOST, Afresh, State
from xmemk.benchmarks.harness.costs import Cost, Roof, measure_roof
from xmemk.benchmarks.harness.measure import Lost, Row, failed, in_fresh_process, time_again, time_peers
from xmemk.benchmarks.harness.suites import Item, Suite
from xmemk.benchmarks.harness.tables import console
from xmemk.benchmarks.peers.registry import Peer


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

    def as_dict(self) -> dict[str, Any]:
        """What :meth:`restore` needs in another process."""
        rows = [asdict(row) for row in self.rows]
        return {"rows": rows, "cost": self.cost, "earlier": self.earlier}

    def restore(self, told: dict[str, Any]) -> None:
        self.rows = [Row(**row) for row in told["rows"]]
        self.cost = None if told["cost"] is None else Cost(*told["cost"])
        self.earlier = told["earlier"]


def beside_peers(suite: Suite, options: argparse.Namespace, state: State, afresh: bool = False) -> bool:
    """Measures the cases of ``suite`` into state.run["results"], which is complete after each case; whether ours was
    right everywhere, and left the device to the others.

    ``state``: what there is, and where to begin. ``afresh``: raises Afresh when a fresh process is to go on; without
    it, and after MOST of them, what is left are rows with the reason.
    """
    sweeps, green = Sweeps(suite, options, state), state.green
    for stage, compiled in enumerate([False, True] if suite.compiled_last else [None]):
        if stage < state.at[0]:
            continue
        entries = [e for item in suite.items if (e := sweeps.entry(item, compiled, green)) is not None]
        if stage == state.at[0]:
            for entry, told in zip(entries, state.entries):
                entry.restore(told)
        for number in range(sweeps.count):
            for at, entry in enumerate(entries):
                here = (stage, number, at)
                if here < state.at:
                    continue
                try:
                    sweeps.measure(entry, number, green)
                except Lost as lost:
                    sweeps.lose(entry, lost)
                    if afresh and len(sweeps.losses) <= MOST:
                        raise Afresh(sweeps.state(here, entries, green)) from lost
                    sweeps.gone = f"not measured: {lost.peer or 'the inputs'} of {entry.item.op} ended with {lost}"
                    sweeps.measure(entry, number, green)
                sweeps.note(entry, last=number == sweeps.count - 1, compiled=bool(compiled))
                if not sweeps.gone:
                    torch.compiler.reset()
    right = not any(
        row["ours"] and row["status"] in ("WRONG", "rounded") for r in sweeps.run["results"] for row in r["rows"]
    )
    return right and not any(loss["ours"] for loss in sweeps.losses)


class Sweeps:
    """What all cases of a run share."""

    def __init__(self, suite: Suite, options: argparse.Namespace, state: State) -> None:
        self.run, self.suite, self.options = state.run, suite, options
        self.count = max(1, min(suite.sweeps, suite.rounds))
        self.on_cpu = torch.device(options.device).type == "cpu"
        self.roof: Roof | None = Roof(**self.run["roof"]) if "roof" in self.run else None
        seconds = state.seconds_left
        self._until = None if seconds is None else time.monotonic() + seconds
        self._by_item = {Item(r["op"], r["workload"], r["objects"]): r for r in self.run["results"]}
        # Who took the device from a process, where; kept with the run.
        self.losses: list[dict[str, Any]] = self.run.get("losses", [])
        self.gone = ""  # why nothing more can be measured

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

    def measure(self, entry: Entry, number: int, green: dict[str, bool | str]) -> None:
        """A sweep of a case. Raises Lost."""
        if number == 0:
            self.begin(entry, refused=entry.item.op not in green)
        else:
            self.go_on(entry, number)

    def lose(self, entry: Entry, lost: Lost) -> None:
        """Writes down whose call took the device."""
        item, ours = entry.item, any(p.ours and p.name == lost.peer for p in entry.peers)
        self.losses.append({**item._asdict(), "peer": lost.peer, "ours": ours, "reason": lost.reason})
        self.run["losses"] = self.losses

    def lost_by(self, entry: Entry) -> dict[str, str]:
        """The peers that are not tried again in this case, and why."""
        here = [loss for loss in self.losses if Item(loss["op"], loss["workload"], loss["objects"]) == entry.item]
        return {p.name: loss["reason"] for loss in here for p in entry.peers if loss["peer"] in ("", p.name)}

    def state(self, at: tuple[int, int, int], entries: list[Entry], green: dict[str, bool | str]) -> State:
        """For the process that goes on at ``at``."""
        left = None if self._until is None else self._until - time.monotonic()
        return State(self.run, green, left, time.time(), at, [e.as_dict() for e in entries])

    def begin(self, entry: Entry, refused: bool) -> None:
        """Checks the peers, measures their memory, and times the first rounds."""
        late, lost = self.late, self.lost_by(entry)
        reason = "not reached in the time given" if late else "refused: the tests of this op are red" if refused else ""
        reason = self.gone or reason
        if reason or len(lost) == len(entry.peers):
            entry.rows = [Row(p.name, p.ours, reason=lost.get(p.name, reason)) for p in entry.peers]
            return
        try:
            made = ops.make(entry.arguments)
            if made.like is not None:
                self._measure_roof(made.like)
            entry.result |= made.sizes
            entry.cost = made.cost
            entry.rows = self._measured(made, entry)
        except Lost:
            raise
        except Exception as failure:  # the inputs themselves do not fit, or a package that makes them is missing
            reason = failed(failure, "", torch.device(self.options.device))
            entry.rows = [Row(p.name, p.ours, reason=lost.get(p.name, reason)) for p in entry.peers]

    def go_on(self, entry: Entry, number: int) -> None:
        """More rounds, unless there are none: of whole frames, whose set-up takes longer than they do."""
        lost = self.lost_by(entry)
        for row in entry.rows:
            row.reason = row.reason or lost.get(row.peer, "")
        peers = [p for p in entry.peers if p.name not in lost]
        left = {p.name for p in peers}
        measured = any(row.seconds and row.peer in left for row in entry.rows)
        if self.gone or self.late or not measured or entry.item.op in ops.FRAME_OPS:
            return
        try:
            made = ops.make(entry.arguments)
            if made.like is not None and entry.item == self.suite.items[0]:
                self._measure_roof(made.like, again=True)
        except Exception as failure:
            failed(failure, "", torch.device(self.options.device))
            return
        before = f"{entry.item.op}, {entry.item.workload}, sweep {number + 1} of {self.count}: "
        with console.status("") as status:
            time_again(
                made.case,
                peers,
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
            omitted |= self.lost_by(entry)
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
