"""How the peers are timed and their memory measured: in turn, medians, and each one's peak in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from xmemk.benchmarks.peers import Peer, Unavailable, verdict
from xmemk.benchmarks.workloads import WORKLOADS, Case, make_case

from xmemk.demo.peak import Peak


@dataclass
class Row:
    """One peer on one case. ``reason`` says why there is no time, or what is wrong with the result."""

    peer: str
    ours: bool = False
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    reason: str = ""
    extra_bytes: int | None = None
    device_seconds: float | None = None
    host_seconds: float | None = None
    ratio: float | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / statistics.median(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median, "spread": self.spread}


def time_peers(
    case: Case, peers: list[Peer], *, rounds: int, budget: float, said: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Checks each peer, then times them in turn, round by round, so that a busy machine slows them alike.

    A peer whose rounds have taken ``budget`` seconds is left out of the rest. One that fails or is wrong is not timed.
    """
    rows, calls = [], {}
    for peer in peers:
        said(peer.name)
        row = Row(peer.name, peer.ours)
        rows.append(row)
        try:
            call = peer.prepare(case)
            compared = verdict(case, call())
        except Unavailable as reason:
            row.reason = str(reason)
        except Exception as failure:  # a peer is other people's code: its failure is a row, never the end of the run
            row.reason = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"[:200]
        else:
            row.error = None if compared is None else compared.error
            if compared is not None and not compared.passed:
                row.reason = f"wrong: {compared}"
            else:
                calls[peer.name] = call
    for i in range(rounds):
        said(f"round {i + 1} of {rounds}")
        for row in rows:
            if row.peer not in calls or sum(row.seconds) > budget:
                continue
            start = time.perf_counter()
            calls[row.peer]()
            synchronize(case.inputs.qk.device)
            row.seconds.append(time.perf_counter() - start)
    compare_with_ours(rows)
    return rows


def compare_with_ours(rows: list[Row]) -> None:
    """Sets ``ratio``: the median over the rounds of how many times our first row's seconds a peer's are."""
    base = next((row.seconds for row in rows if row.ours and row.seconds), None)
    for row in rows:
        if base and row.seconds:
            row.ratio = statistics.median(theirs / ours for theirs, ours in zip(row.seconds, base))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_of(case: Case, peer: Peer) -> int | None:
    """Bytes that one call takes at its peak beyond its inputs, in this process."""
    call = peer.prepare(case)
    if peer.compiled:
        call()  # what the compiler takes is not the call's
    else:  # libraries and thread pools wake up with a small one
        tiny = make_case(case.op, WORKLOADS["tiny"], device=case.inputs.qk.device)
        peer.prepare(tiny)()
    with Peak(case.inputs.qk.device) as peak:
        result = call()
        synchronize(case.inputs.qk.device)
    del result
    return peak.bytes


def peak_in_fresh_process(arguments: dict[str, Any], timeout: float) -> int | str | None:
    """:func:`peak_of` in a new process, or why there is no figure. ``arguments`` as run.py takes them."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--peak-of", json.dumps(arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no memory figure within {timeout:.0f} s"
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return f"the process that measures memory failed: {said[-1] if said else f'exit {done.returncode}'}"[:200]
    return json.loads(done.stdout.splitlines()[-1])
