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
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from xmemk.benchmarks.harness import cases
from xmemk.benchmarks.harness.cases import CaseSetup, Suite, SuiteItem
from xmemk.benchmarks.harness.costs import OpCost, Roof, measure_roof
from xmemk.benchmarks.harness.processes import in_fresh_process
from xmemk.benchmarks.harness.record import MOST_RESTARTS, RunState, replace_this_process
from xmemk.benchmarks.harness.timing import DeviceLost, Trial, failed, time_peers
from xmemk.benchmarks.peers.catalogue import PRODUCT_ALONE, Peer
from xmemk.benchmarks.peers.workloads import FRAME_OPS
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import NOT_REACHED, CaseResult, Measurement

FIRST_SWEEP = 0.8  # of the time given
PeersOf = Callable[[str, "list[str] | None", str], list[Peer]]  # by op, backends and device


@dataclass
class Entry:
    """A case of a run: its result, and the peers that are measured together and their rows.

    earlier: what the result has of the peers that do not compile, where those that do come last.
    """

    item: SuiteItem
    result: CaseResult
    peers: list[Peer]
    compiled: bool
    earlier: list[Measurement] = field(default_factory=list)
    rows: list[Measurement] = field(default_factory=list)
    cost: OpCost | None = None


def beside_peers(
    suite: Suite, options: argparse.Namespace, state: RunState, peers: PeersOf, restarts: bool = False
) -> bool:
    """Measures the cases of ``suite`` into state.run, which is complete after each case.

    Returns whether ours was right everywhere, and left the device to the others. ``state``: what
    was measured, and where to begin. ``restarts``: a fresh process goes on where the device was
    lost; without it, and after MOST_RESTARTS, the rest are rows with the reason.
    """
    sweeps = Sweeps(suite, options, state, peers)
    parts: tuple[bool | None, ...] = (False, True) if suite.compiled_last else (None,)
    entries = [entry for part in parts for item in suite.items if (entry := sweeps.entry(item, part)) is not None]
    for here in ((sweep, at) for sweep in range(sweeps.count) for at in range(len(entries))):
        if here < state.at:
            continue
        entry = entries[here[1]]
        sweeps.share_time(here[0], len(entries) - here[1])
        try:
            sweeps.measure(entry, here[0])
        except DeviceLost as lost:
            ours = any(p.ours and p.name == lost.peer for p in entry.peers)
            loss = {**entry.item._asdict(), "peer": lost.peer, "ours": ours, "reason": lost.reason}
            state.run.losses.append(loss)
            if restarts and len(state.run.losses) <= MOST_RESTARTS:
                terminal.tell(f"{lost.peer or 'the inputs'} of {entry.item.op}: {lost}; a fresh process goes on")
                replace_this_process(RunState(state.run, state.green, state.until, here))
            sweeps.gone = f"not measured: {lost.peer or 'the inputs'} of {entry.item.op} ended with {lost}"
            sweeps.measure(entry, here[0])
        sweeps.note(entry, last=here[0] == sweeps.count - 1)
        if not sweeps.gone:
            torch.compiler.reset()
    rows = [row for result in state.run.results for row in result.rows]
    right = not any(row.ours and row.status in ("WRONG", "rounded") for row in rows)
    return right and not any(loss["ours"] for loss in state.run.losses)


class Sweeps:
    """What all cases of a run share."""

    def __init__(self, suite: Suite, options: argparse.Namespace, state: RunState, peers: PeersOf) -> None:
        self.run, self.suite, self.options, self.state = state.run, suite, options, state
        self.peers_of = peers
        self.count = max(1, min(suite.sweeps, suite.rounds))
        self.device = torch.device(options.device)
        self.roof = Roof(**self.run.roof) if self.run.roof else None
        self._by_item = {SuiteItem(r.op, r.workload, r.objects): r for r in self.run.results}
        self.gone = ""  # why nothing more can be measured
        self.began, self.until = time.time(), state.until

    def share_time(self, sweep: int, left: int) -> None:
        """When the next of so many cases ends: in the first sweep each has its part of most of the
        time, so that each has figures."""
        self.until = self.state.until
        if self.until is not None and self.suite.even:
            share = FIRST_SWEEP if sweep == 0 and self.count > 1 else 1.0
            end = self.began + share * (self.until - self.began)
            self.until = time.time() + (end - time.time()) / left

    @property
    def late(self) -> bool:
        return self.until is not None and time.time() > self.until

    def entry(self, item: SuiteItem, compiled: bool | None) -> Entry | None:
        """``compiled`` True: ours and the peers that compile; False: the others; None: all."""
        known = self.peers_of(item.op, self.options.backend, self.options.device)
        peers = [p for p in known if p.ours or not self.options.only or p.name in self.options.only]
        peers = [p for p in peers if compiled is None or p.ours or p.compiled == compiled]
        if compiled and all(p.ours for p in peers):
            return None
        if item not in self._by_item:
            tested = self.state.green.get(item.op, "tests are red")
            self._by_item[item] = CaseResult(**self.suite.arguments(item, self.options.device), tested=tested)
            self.run.results.append(self._by_item[item])
        result = self._by_item[item]
        return Entry(item, result, peers, bool(compiled), rows=[] if compiled else result.rows)

    def measure(self, entry: Entry, sweep: int) -> None:
        """A sweep of a case. Raises DeviceLost."""
        losses = [x for x in self.run.losses if SuiteItem(x["op"], x["workload"], x["objects"]) == entry.item]
        lost = {p.name: x["reason"] for x in losses for p in entry.peers if x["peer"] in ("", p.name)}
        if sweep == 0:
            self.begin(entry, lost)
        else:
            self.go_on(entry, sweep, lost)

    def begin(self, entry: Entry, lost: dict[str, str]) -> None:
        """Checks the peers, measures their memory, and times the first rounds.

        ``lost``: the peers that are not tried again in this case, and why.
        """
        entry.earlier = list(entry.result.rows) if entry.compiled else []
        reason = "" if entry.item.op in self.state.green else "refused: the tests of this op are red"
        reason = self.gone or (NOT_REACHED if self.late else reason)
        if not reason and len(lost) < len(entry.peers):
            try:
                entry.rows = self._measured(self._setup(entry, self.roof is None), entry, lost)
                return
            except DeviceLost:
                raise
            except Exception as failure:  # the inputs do not fit, or a package that makes them is missing
                reason = failed(failure, "", self.device)
        entry.rows = [Measurement(p.name, p.ours, reason=lost.get(p.name, reason)) for p in entry.peers]

    def go_on(self, entry: Entry, sweep: int, lost: dict[str, str]) -> None:
        """More rounds, but not of whole frames, whose set-up takes longer than they do."""
        for row in entry.rows:
            row.reason = row.reason or lost.get(row.peer, "")
        peers = [p for p in entry.peers if p.name not in lost]
        measured = {row.peer for row in entry.rows if row.seconds} & {p.name for p in peers}
        if self.gone or self.late or not measured or entry.item.op in FRAME_OPS:
            return
        try:
            case = self._setup(entry, entry.item == self.suite.items[0]).case
        except Exception as failure:
            failed(failure, "", self.device)
            return
        with terminal.progress(f"{entry.item.op}, {entry.item.workload}, sweep {sweep + 1} of {self.count}") as tell:
            time_peers(
                case,
                peers,
                rounds=self._rounds(sweep),
                budget=self.suite.budget / self.count,
                tell=tell,
                earlier={row.peer: row for row in entry.rows if sum(row.seconds) < self.suite.budget},
            )

    def note(self, entry: Entry, last: bool) -> None:
        """The rows into the run's results; after the last sweep as a table, too."""
        for row in entry.rows:
            if row.median and self.roof and entry.cost and row.peer != PRODUCT_ALONE:
                row.of_roof = entry.cost.seconds_at(self.roof) / row.median
        entry.result.rows = entry.earlier + [r for r in entry.rows if not (entry.compiled and r.ours)]
        if last:
            terminal.show_case(CaseResult(**{**vars(entry.result), "rows": entry.rows}))
        if self.options.results:
            name = self.run.machine["GPU"] if self.device.type == "cuda" else "cpu"
            terminal.write(self.run, self.options.results, re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))

    def _rounds(self, sweep: int) -> int:
        """Those of all sweeps are the suite's."""
        return (self.suite.rounds + self.count - 1 - sweep) // self.count

    def _setup(self, entry: Entry, measures_roof: bool) -> CaseSetup:
        """The case made anew. The best roof of the run is kept: it can only be measured too low."""
        setup = cases.make(self.suite.arguments(entry.item, self.options.device))
        if setup.product is not None and measures_roof:
            seconds, dtype = 0.5 if self.roof is None else 0.15, cases.DTYPES[self.suite.dtype]
            roof = measure_roof(self.options.device, dtype, setup.product, seconds)
            self.roof = Roof(*map(max, roof, self.roof or roof))
            self.run.roof = self.roof.to_json()
        vars(entry.result).update(setup.sizes)
        entry.cost = setup.cost
        return setup

    def _measured(self, setup: CaseSetup, entry: Entry, lost: dict[str, str]) -> list[Measurement]:
        """One row a peer, in their order."""
        suite, limit, op, on_cpu = self.suite, self.options.limit, entry.item.op, self.device.type == "cpu"
        until = self.until
        arguments = suite.arguments(entry.item, self.options.device)
        whole = op in FRAME_OPS
        with terminal.progress(f"{op}, {entry.item.workload}") as tell:

            def trial(peer: Peer) -> Trial:
                # On a GPU a compiler is asked at most once, in this process: a second one takes too
                # long.
                if peer.compiled and not on_cpu:
                    return None, ""
                tell(f"{peer.name}, in a process of its own")
                left = limit if until is None else min(limit, until - time.time())
                return in_fresh_process({**arguments, "peer": peer.name}, timeout=max(1.0, left))

            omitted = {p.name: why for p in entry.peers if (why := suite.omission(entry.item, p))} | lost
            rows = time_peers(
                setup.case,
                [p for p in entry.peers if p.name not in omitted],
                rounds=suite.rounds if whole else self._rounds(0),
                budget=suite.budget / (1 if whole else self.count),
                tell=tell,
                trial=trial if setup.product is not None and not self.options.base else None,
                judge=setup.judge,
                until=until,
            )
            for row in rows if on_cpu and op in suite.memory else ():
                if row.median is not None and row.extra_bytes is None and not self.late:
                    tell(f"memory of {row.peer}")
                    row.extra_bytes, why = in_fresh_process({**arguments, "peer": row.peer}, timeout=limit)
                    row.reason = row.reason or (f"no memory figure: {why}" if why else "")
        by_name = {row.peer: row for row in rows}
        return [by_name.get(p.name) or Measurement(p.name, p.ours, reason=omitted[p.name]) for p in entry.peers]
