"""The cases of a run beside their peers, in sweeps: every case is measured in each, on inputs made
anew.

A machine that others use is slow for seconds or minutes at a time, and not for all peers alike. So
the rounds of a case are spread over the whole run. The first sweep checks the peers and measures
their memory, too.

A peer that makes the GPU unusable for this process, as by an illegal memory access, is not tried
again in its case; a fresh process goes on with the others.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass, field

import torch
from xmemk.benchmarks.harness import case_setup
from xmemk.benchmarks.harness.case_setup import CaseSetup
from xmemk.benchmarks.harness.costs import OpCost, Roof, measure_roof
from xmemk.benchmarks.harness.peaks import Trial, in_fresh_process
from xmemk.benchmarks.harness.restart import MOST_RESTARTS, RestartNeeded, RunState
from xmemk.benchmarks.harness.suites import Suite, SuiteItem
from xmemk.benchmarks.harness.timing import DeviceLost, failed, time_again, time_peers
from xmemk.benchmarks.peers.catalogue import PRODUCT_ALONE, Peer
from xmemk.benchmarks.peers.workloads import FRAME_OPS
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import NOT_REACHED, CaseResult, Measurement


@dataclass
class Entry:
    """A case of a run: its result, the peers of this pass and their rows.

    earlier: the rows of the pass before, in which the peers that do not compile were measured.
    """

    item: SuiteItem
    result: CaseResult
    peers: list[Peer]
    earlier: list[Measurement]
    rows: list[Measurement] = field(default_factory=list)
    cost: OpCost | None = None


def beside_peers(suite: Suite, options: argparse.Namespace, state: RunState, restarts: bool = False) -> bool:
    """Measures the cases of ``suite`` into state.run, which is complete after each case.

    Returns whether ours was right everywhere, and left the device to the others. ``state``: what
    was measured, and where to begin. ``restarts``: raises RestartNeeded when a fresh process is to
    go on; without it, and after MOST_RESTARTS, the rest are rows with the reason.
    """
    sweeps = Sweeps(suite, options, state)
    for number, compiled in enumerate([False, True] if suite.compiled_last else [None]):
        if number < state.at[0]:
            continue
        entries = [entry for item in suite.items if (entry := sweeps.entry(item, compiled)) is not None]
        for sweep in range(sweeps.count):
            for at, entry in enumerate(entries):
                here = (number, sweep, at)
                if here < state.at:
                    continue
                try:
                    sweeps.measure(entry, sweep)
                except DeviceLost as lost:
                    sweeps.lose(entry, lost)
                    if restarts and len(state.run.losses) <= MOST_RESTARTS:
                        left = None if sweeps.until is None else sweeps.until - time.monotonic()
                        raise RestartNeeded(RunState(state.run, state.green, left, time.time(), here)) from lost
                    sweeps.gone = f"not measured: {lost.peer or 'the inputs'} of {entry.item.op} ended with {lost}"
                    sweeps.measure(entry, sweep)
                sweeps.note(entry, last=sweep == sweeps.count - 1, compiled=bool(compiled))
                if not sweeps.gone:
                    torch.compiler.reset()
    rows = [row for result in state.run.results for row in result.rows]
    right = not any(row.ours and row.status in ("WRONG", "rounded") for row in rows)
    return right and not any(loss["ours"] for loss in state.run.losses)


class Sweeps:
    """What all cases of a run share."""

    def __init__(self, suite: Suite, options: argparse.Namespace, state: RunState) -> None:
        self.run, self.suite, self.options, self.green = state.run, suite, options, state.green
        self.count = max(1, min(suite.sweeps, suite.rounds))
        self.device = torch.device(options.device)
        self.roof = Roof(**self.run.roof) if self.run.roof else None
        seconds = state.seconds_left
        self.until = None if seconds is None else time.monotonic() + seconds
        self._by_item = {SuiteItem(r.op, r.workload, r.objects): r for r in self.run.results}
        self.gone = ""  # why nothing more can be measured

    @property
    def late(self) -> bool:
        return self.until is not None and time.monotonic() > self.until

    def entry(self, item: SuiteItem, compiled: bool | None) -> Entry | None:
        """``compiled`` True: ours and the peers that compile; False: the others; None: all."""
        known = case_setup.peers(item.op, self.options.backend, self.options.device)
        peers = [p for p in known if p.ours or not self.options.only or p.name in self.options.only]
        if compiled is not None:
            peers = [p for p in peers if p.ours or p.compiled == compiled]
        if compiled and all(p.ours for p in peers):
            return None
        result = self._by_item.get(item)
        if result is None:
            arguments = self.suite.arguments(item, self.options.device)
            result = self._by_item[item] = CaseResult(**arguments, tested=self.green.get(item.op, "tests are red"))
            self.run.results.append(result)
        return Entry(item, result, peers, result.rows, [] if compiled else result.rows)

    def measure(self, entry: Entry, sweep: int) -> None:
        """A sweep of a case. Raises DeviceLost."""
        if sweep == 0:
            self.begin(entry)
        else:
            self.go_on(entry, sweep)

    def lose(self, entry: Entry, lost: DeviceLost) -> None:
        """Records whose call took the device."""
        ours = any(p.ours and p.name == lost.peer for p in entry.peers)
        self.run.losses.append({**entry.item._asdict(), "peer": lost.peer, "ours": ours, "reason": lost.reason})

    def lost_by(self, entry: Entry) -> dict[str, str]:
        """The peers that are not tried again in this case, and why."""
        losses = [x for x in self.run.losses if SuiteItem(x["op"], x["workload"], x["objects"]) == entry.item]
        return {p.name: x["reason"] for x in losses for p in entry.peers if x["peer"] in ("", p.name)}

    def begin(self, entry: Entry) -> None:
        """Checks the peers, measures their memory, and times the first rounds."""
        lost = self.lost_by(entry)
        reason = "" if entry.item.op in self.green else "refused: the tests of this op are red"
        reason = self.gone or (NOT_REACHED if self.late else reason)
        if not reason and len(lost) < len(entry.peers):
            try:
                setup = self._setup(entry, self.roof is None)
                entry.rows = self._measured(setup, entry)
                return
            except DeviceLost:
                raise
            except Exception as failure:  # the inputs do not fit, or a package that makes them is missing
                reason = failed(failure, "", self.device)
        entry.rows = [Measurement(p.name, p.ours, reason=lost.get(p.name, reason)) for p in entry.peers]

    def go_on(self, entry: Entry, sweep: int) -> None:
        """More rounds, but not of whole frames, whose set-up takes longer than they do."""
        lost = self.lost_by(entry)
        for row in entry.rows:
            row.reason = row.reason or lost.get(row.peer, "")
        peers = [p for p in entry.peers if p.name not in lost]
        measured = {row.peer for row in entry.rows if row.seconds} & {p.name for p in peers}
        if self.gone or self.late or not measured or entry.item.op in FRAME_OPS:
            return
        try:
            setup = self._setup(entry, entry.item == self.suite.items[0])
        except Exception as failure:
            failed(failure, "", self.device)
            return
        before = f"{entry.item.op}, {entry.item.workload}, sweep {sweep + 1} of {self.count}: "
        with terminal.console.status("") as status:
            time_again(
                setup.case,
                peers,
                entry.rows,
                rounds=self._rounds(sweep),
                budget=self.suite.budget / self.count,
                in_all=self.suite.budget,
                tell=lambda what: status.update(before + what),
            )

    def note(self, entry: Entry, last: bool, compiled: bool) -> None:
        """The rows into the run's results; after the last sweep as a table, too."""
        for row in entry.rows:
            if row.median and self.roof and entry.cost and row.peer != PRODUCT_ALONE:
                row.of_roof = entry.cost.seconds_at(self.roof) / row.median
        entry.result.rows = entry.earlier + [r for r in entry.rows if not r.ours] if compiled else entry.rows
        if last:
            terminal.show(CaseResult(**{**vars(entry.result), "rows": entry.rows}))
        if self.options.results:
            name = self.run.machine["GPU"] if self.device.type == "cuda" else "cpu"
            terminal.write(self.run, self.options.results, re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))

    def _rounds(self, sweep: int) -> int:
        """Those of all sweeps are the suite's."""
        return (self.suite.rounds + self.count - 1 - sweep) // self.count

    def _setup(self, entry: Entry, measures_roof: bool) -> CaseSetup:
        """The case made anew. The best roof of the run is kept: it can only be measured too low."""
        setup = case_setup.make(self.suite.arguments(entry.item, self.options.device))
        if setup.product is not None and measures_roof:
            seconds, dtype = 0.5 if self.roof is None else 0.15, case_setup.DTYPES[self.suite.dtype]
            roof = measure_roof(self.options.device, dtype, setup.product, seconds)
            self.roof = Roof(*map(max, roof, self.roof or roof))
            self.run.roof = self.roof.to_json()
        vars(entry.result).update(setup.sizes)
        entry.cost = setup.cost
        return setup

    def _measured(self, setup: CaseSetup, entry: Entry) -> list[Measurement]:
        """One row a peer, in their order."""
        suite, options, op, on_cpu = self.suite, self.options, entry.item.op, self.device.type == "cpu"
        arguments = suite.arguments(entry.item, options.device)
        count = 1 if op in FRAME_OPS else self.count
        with terminal.console.status("") as status:

            def trial(peer: Peer) -> Trial:
                # On a GPU a compiler is asked at most once, in this process: a second one takes too
                # long.
                if peer.compiled and not on_cpu:
                    return None, ""
                status.update(f"{peer.name}, in a process of its own")
                left = options.limit if self.until is None else self.until - time.monotonic()
                return in_fresh_process({**arguments, "peer": peer.name}, timeout=max(1.0, min(options.limit, left)))

            omitted = {p.name: why for p in entry.peers if (why := suite.omission(entry.item, p))}
            omitted |= self.lost_by(entry)
            rows = time_peers(
                setup.case,
                [p for p in entry.peers if p.name not in omitted],
                rounds=suite.rounds if op in FRAME_OPS else self._rounds(0),
                budget=suite.budget / count,
                tell=status.update,
                trial=trial if setup.product is not None else None,
                judge=setup.judge,
                until=self.until,
            )
            for row in rows if on_cpu and op in suite.memory else ():
                if row.median is not None and row.extra_bytes is None:
                    status.update(f"memory of {row.peer}")
                    row.extra_bytes, why = in_fresh_process({**arguments, "peer": row.peer}, timeout=options.limit)
                    row.reason = row.reason or (f"no memory figure: {why}" if why else "")
        by_name = {row.peer: row for row in rows}
        return [by_name.get(p.name) or Measurement(p.name, p.ours, reason=omitted[p.name]) for p in entry.peers]
