"""This tree beside another revision of the repository, on the same inputs, each in a process that stays alive.

The revision is unpacked into build/base/COMMIT and its extension built there, once. The two take turns, round by round,
the one that begins changes. A revision that does not have an op, or refuses it, is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.harness import ops, tables
from xmemk.benchmarks.harness.child import Child
from xmemk.benchmarks.harness.measure import Row, compare_with_ours
from xmemk.benchmarks.harness.stopwatch import CHAIN_SECONDS, LONGEST_CHAIN, REPEATS
from xmemk.benchmarks.harness.suites import Item, Suite
from xmemk.benchmarks.harness.tables import console
from xmemk.benchmarks.harness.tested import ROOT
from xmemk.benchmarks.peers.registry import backends_of_ours, call_of_ours, readout_gradient
from xmemk.benchmarks.peers.verdicts import status, verdict
from xmemk.benchmarks.peers.workloads import Case

BUILD_LIMIT = 1800
# Threads of one process may still be spinning when it has answered.
PAUSE = 5e-3


class Failure(Exception):
    """Why there is nothing to compare with."""


class Tree(NamedTuple):
    """A source tree and what is to be said of it: that its extension could not be built, say."""

    path: Path
    name: str
    note: str = ""


def tree_of(revision: str, root: Path = ROOT) -> Tree:
    """The revision's files in build/base, with the extension built in place. Raises Failure."""
    git = ["git", "-C", str(root)]
    asked = subprocess.run([*git, "rev-parse", "--short=12", f"{revision}^{{commit}}"], capture_output=True, text=True)
    if asked.returncode != 0:
        raise Failure(f"wanted a revision of the repository at {root}, got {revision!r}")
    name = asked.stdout.strip()
    path = root / "build" / "base" / name
    if not (path / "setup.py").exists():
        path.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run([*git, "archive", name], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(path)], input=packed.stdout, check=True)
    return Tree(path, name, built(path))


def built(path: Path) -> str:
    """Builds a tree's extension unless that was done; what went wrong, or an empty string."""
    done, log = path / "build" / "base-built", path / "build" / "base-build.log"
    if done.exists():
        return ""
    if not (path / "csrc").is_dir():
        return "it has no extension"
    console.print(f"building the extension of {path.name}", highlight=False)
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        try:
            code = subprocess.run(command, cwd=path, stdout=file, stderr=file, timeout=BUILD_LIMIT).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code == 0:
        done.touch()
        return ""
    said = log.read_text().strip().splitlines()
    return f"its extension could not be built ({log}): {said[-1] if said else ''}"[:300]


class Worker:
    """worker.py on a tree. ``ask`` raises RuntimeError with the reason where an order fails; it may be tried again.

    After an error of CUDA's a context is of no use any more: what is asked next goes to a new process.
    """

    def __init__(self, tree: Path, threads: int, limit: float) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(tree), str(threads)]
        self._limit = limit
        self._child: Child | None = None

    def ask(self, **order: Any) -> dict[str, Any]:
        child = self._child = self._child or Child(self._command, cwd="/")
        child.write(json.dumps(order))
        try:
            line = child.read(self._limit)
        except TimeoutError as late:
            self.close()
            raise RuntimeError(str(late)) from None
        if line is None:
            _, how = child.end()
            self.close()
            raise RuntimeError(how or "its process ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        if "reason" in answer:
            if answer.get("spoilt"):
                self.close()
            raise RuntimeError(answer["reason"])
        return answer

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def compare(run: dict[str, Any], suite: Suite, options: argparse.Namespace, green: dict[str, bool | str]) -> bool:
    """Measures the cases of ``suite`` into run["results"]; whether ours was right everywhere. Raises Failure."""
    other = tree_of(options.base)
    run["base"] = {"revision": options.base, "commit": other.name, "note": other.note}
    if other.note:
        console.print(f"{other.name}: {other.note}", highlight=False, soft_wrap=True)
    trees = (Tree(ROOT, ""), other)
    workers = [Worker(tree.path, torch.get_num_threads(), options.limit) for tree in trees]
    try:
        for item, reason in refused(suite, green):
            arguments = suite.arguments(item, options.device)
            made = None if reason else ops.make(arguments)
            rows: list[Row] = []
            for backend in options.backend or backends_of_ours(item.op, options.device):
                names = (f"xmemk {backend}", f"xmemk {backend} at {other.name}")
                if made is None:
                    rows += [Row(names[0], ours=True, reason=reason), Row(names[1], reason=reason)]
                else:
                    rows += rounds(made.case, backend, names, workers, suite)
            told = [row.as_dict() for row in rows]
            sizes = {} if made is None else made.sizes
            result = {**arguments, "tested": green.get(item.op, "tests are red"), **sizes, "rows": told}
            run["results"].append(result)
            tables.show(result)
    finally:
        for worker in workers:
            worker.close()
    return not any(row["ours"] and row["status"] == "WRONG" for result in run["results"] for row in result["rows"])


def refused(suite: Suite, green: dict[str, bool | str]) -> list[tuple[Item, str]]:
    """Every case, and why it is not measured, or ""."""
    reasons = []
    for item in suite.items:
        reason = "" if item.op in green else "refused: the tests of this op are red"
        reasons.append(f"not compared: {item.op} is not one function" if item.op in ops.FRAME_OPS else reason)
    return list(zip(suite.items, reasons))


def rounds(case: Case, backend: str, names: tuple[str, str], workers: list[Worker], suite: Suite) -> list[Row]:
    """One op by one backend on both trees; ratio is the other's time to ours."""
    rows = [Row(names[0], ours=True), Row(names[1])]
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "case.pt"
        torch.save(order_of(case), asked)
        for row, worker in zip(rows, workers):
            try:
                result = Path(folder) / "result.pt"
                worker.ask(prepare=str(asked), backend=backend, result=str(result))
                compared = verdict(case, torch.load(result, map_location=case.inputs.mk.device, weights_only=True))
                row.status, row.error = status(compared, None, False), compared.error if compared else None
                row.reason = f"wrong: {compared}" if row.status == "WRONG" else ""
            except RuntimeError as failure:
                row.reason = str(failure)
    timed = [(row, worker) for row, worker in zip(rows, workers) if not row.reason]
    if len(timed) < len(rows):
        return rows
    try:
        chain = length_of_chain(case, [seconds_of(row, worker, 1) for row, worker in timed])
        for i in range(suite.rounds):
            if chain * sum(sum(row.seconds) for row in rows) > suite.budget * len(rows):
                break
            for row, worker in timed[:: -1 if i % 2 else 1]:
                time.sleep(PAUSE)
                row.seconds.append(seconds_of(row, worker, chain))
    except RuntimeError:
        pass  # the row has the reason
    compare_with_ours(rows, [row.seconds for row in rows])
    return rows


def seconds_of(row: Row, worker: Worker, chain: int) -> float:
    """The mean of a chain of calls. What goes wrong becomes the row's reason, and is raised."""
    try:
        return float(worker.ask(chain=chain)["seconds"])
    except RuntimeError as failure:
        row.reason = str(failure)
        raise


def length_of_chain(case: Case, seconds: list[float]) -> int:
    kind = case.inputs.mk.device.type
    return max(1, min(LONGEST_CHAIN[kind], int(REPEATS[kind] * CHAIN_SECONDS[kind] / max(*seconds, 1e-9))))


def order_of(case: Case) -> dict[str, Any]:
    """What a worker needs to know of a case: tensors and plain values alone."""
    op, arguments, options = call_of_ours(case)
    how = "train" if "train" in case.op else "backward" if "backward" in case.op else "call"
    plain = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    gradient = None if how == "call" else readout_gradient(case.inputs)
    return {"op": op, "arguments": plain, "options": options, "how": how, "d_readout": gradient}
