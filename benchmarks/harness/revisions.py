"""This tree beside another revision of the repository, on the same inputs, each in a process that
stays alive.

The revision is unpacked into build/base/COMMIT and its extension built there, once. The two take
turns, round by round; the one that begins changes. A revision that does not have an op, or refuses
it, is a row with the reason.
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
from xmemk.benchmarks.harness import case_setup
from xmemk.benchmarks.harness.line_process import LineProcess
from xmemk.benchmarks.harness.op_tests import ROOT
from xmemk.benchmarks.harness.round_timer import REPEATS, chain_length
from xmemk.benchmarks.harness.suites import Suite, SuiteItem
from xmemk.benchmarks.harness.timing import compare_with_ours
from xmemk.benchmarks.peers.catalogue import backends_of_ours, call_of_ours, readout_gradient
from xmemk.benchmarks.peers.verdicts import status, verdict
from xmemk.benchmarks.peers.workloads import FRAME_OPS, OpCase
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import CaseResult, Measurement, Run

BUILD_LIMIT = 1800
PAUSE = 5e-3  # seconds; threads of one process may still be spinning when it has answered


class NoBaseRevision(Exception):
    """Why there is nothing to compare with."""


class SourceTree(NamedTuple):
    """note: what is to be said of it, such as that its extension could not be built."""

    path: Path
    name: str
    note: str = ""


def tree_of(revision: str, root: Path = ROOT) -> SourceTree:
    """The revision's files in build/base, with the extension built in place.

    Raises NoBaseRevision.
    """
    git = ["git", "-C", str(root)]
    parsed = subprocess.run([*git, "rev-parse", "--short=12", f"{revision}^{{commit}}"], capture_output=True, text=True)
    if parsed.returncode != 0:
        raise NoBaseRevision(f"wanted a revision of the repository at {root}, got {revision!r}")
    name = parsed.stdout.strip()
    path = root / "build" / "base" / name
    if not (path / "setup.py").exists():
        path.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run([*git, "archive", name], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(path)], input=packed.stdout, check=True)
    return SourceTree(path, name, built(path))


def built(path: Path) -> str:
    """Builds a tree's extension unless that was done; what went wrong, or an empty string."""
    done, log = path / "build" / "base-built", path / "build" / "base-build.log"
    if done.exists():
        return ""
    if not (path / "csrc").is_dir():
        return "it has no extension"
    terminal.tell(f"building the extension of {path.name}")
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
    lines = log.read_text().strip().splitlines() or [""]
    return f"its extension could not be built ({log}): {lines[-1]}"[:300]


class RevisionProcess:
    """revision_worker.py on a tree.

    ``ask`` raises RuntimeError with the reason where an order fails; it may be tried again. After
    an error of CUDA's a context is of no use any more: what is asked next goes to a new process.
    """

    def __init__(self, tree: SourceTree, threads: int, limit: float) -> None:
        script = Path(__file__).with_name("revision_worker.py")
        self._command = [sys.executable, str(script), str(tree.path), str(threads)]
        self._limit = limit
        self._process: LineProcess | None = None

    def ask(self, **order: Any) -> dict[str, Any]:
        process = self._process = self._process or LineProcess(self._command, cwd="/")
        process.write(json.dumps(order))
        try:
            line = process.read(self._limit)
        except TimeoutError as late:
            self.close()
            raise RuntimeError(str(late)) from None
        if line is None:
            _, how = process.end()
            self.close()
            raise RuntimeError(how or "its process ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        if "reason" in answer:
            if answer.get("spoilt"):
                self.close()
            raise RuntimeError(answer["reason"])
        return answer

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


def compare(run: Run, suite: Suite, options: argparse.Namespace, green: dict[str, bool | str]) -> bool:
    """Measures the cases of ``suite`` into run.results; whether ours was right everywhere.

    Raises NoBaseRevision.
    """
    other = tree_of(options.base)
    run.base = {"revision": options.base, "commit": other.name, "note": other.note}
    if other.note:
        terminal.tell(f"{other.name}: {other.note}")
    trees = (SourceTree(ROOT, ""), other)
    processes = [RevisionProcess(tree, torch.get_num_threads(), options.limit) for tree in trees]
    try:
        for item in suite.items:
            arguments, reason = suite.arguments(item, options.device), refusal(item, green)
            setup = None if reason else case_setup.make(arguments)
            sizes = setup.sizes if setup else {}
            result = CaseResult(**arguments, **sizes, tested=green.get(item.op, "tests are red"))
            for backend in options.backend or backends_of_ours(item.op, options.device):
                names = (f"xmemk {backend}", f"xmemk {backend} at {other.name}")
                rows = [Measurement(name, name is names[0], reason=reason) for name in names]
                if setup is not None:
                    time_both(setup.case, backend, rows, processes, suite)
                result.rows += rows
            run.results.append(result)
            terminal.show(result)
    finally:
        for process in processes:
            process.close()
    return not any(row.ours and row.status == "WRONG" for result in run.results for row in result.rows)


def refusal(item: SuiteItem, green: dict[str, bool | str]) -> str:
    """Why a case is not measured, or ""."""
    if item.op in FRAME_OPS:
        return f"not compared: {item.op} is not one function"
    return "" if item.op in green else "refused: the tests of this op are red"


def time_both(
    case: OpCase, backend: str, rows: list[Measurement], processes: list[RevisionProcess], suite: Suite
) -> None:
    """One op by one backend on both trees, into their rows; a ratio is the other's time to ours."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = Path(folder) / "case.pt", Path(folder) / "result.pt"
        torch.save(order_of(case), inputs)
        for row, process in zip(rows, processes):
            try:
                process.ask(prepare=str(inputs), backend=backend, result=str(output))
                compared = verdict(case, torch.load(output, map_location=case.device, weights_only=True))
                row.status, row.error = status(compared, None, False), compared.error if compared else None
                row.reason = f"wrong: {compared}" if row.status == "WRONG" else ""
            except RuntimeError as failure:
                row.reason = str(failure)
    if any(row.reason for row in rows):
        return
    timed = list(zip(rows, processes))
    kind = case.device.type
    try:
        slowest = max(seconds_of(row, process, 1) for row, process in timed)
        chain = chain_length(kind, slowest / REPEATS[kind])
        for i in range(suite.rounds):
            if chain * sum(sum(row.seconds) for row in rows) > suite.budget * len(rows):
                break
            for row, process in timed[:: -1 if i % 2 else 1]:
                time.sleep(PAUSE)
                row.seconds.append(seconds_of(row, process, chain))
    except RuntimeError:
        pass  # the row has the reason
    compare_with_ours(rows, [row.seconds for row in rows])


def seconds_of(row: Measurement, process: RevisionProcess, chain: int) -> float:
    """The mean of a chain of calls. What goes wrong becomes the row's reason, and is raised."""
    try:
        return float(process.ask(chain=chain)["seconds"])
    except RuntimeError as failure:
        row.reason = str(failure)
        raise


def order_of(case: OpCase) -> dict[str, Any]:
    """What a worker needs to know of a case: tensors and plain values alone."""
    op, arguments, options = call_of_ours(case)
    how = case.op.rsplit("_", 1)[-1] if case.op.endswith(("_train", "_backward")) else "call"
    plain = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    gradient = None if how == "call" else readout_gradient(case.inputs)
    return {"op": op, "arguments": plain, "options": options, "how": how, "d_readout": gradient}
