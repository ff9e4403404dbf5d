"""This tree beside another revision of the repository, on the same inputs, each in a process that
stays alive.

The revision is unpacked into build/base/COMMIT and its extension built there, once. The two take
turns as peers do. A revision that does not have an op, or refuses it, is a row with the reason.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from xmemk.benchmarks.harness import processes
from xmemk.benchmarks.harness.op_tests import ROOT
from xmemk.benchmarks.harness.sweeps import PeersOf
from xmemk.benchmarks.peers.catalogue import Peer, Unavailable, backends_of_ours, call_of_ours, readout_gradient
from xmemk.benchmarks.peers.workloads import OpCase
from xmemk.benchmarks.report import terminal
from xmemk.benchmarks.report.schema import ResultLine


class NoSuchRevision(ValueError):
    """There is nothing to compare with."""


class SourceTree(NamedTuple):
    """note: what is to be said of it, such as that its extension could not be built."""

    path: Path
    name: str
    note: str = ""


def tree_of(revision: str, root: Path = ROOT) -> SourceTree:
    """The revision's files in build/base, with the extension built in place."""
    git = ["git", "-C", str(root)]
    parsed = subprocess.run([*git, "rev-parse", "--short=12", f"{revision}^{{commit}}"], capture_output=True, text=True)
    if parsed.returncode != 0:
        raise NoSuchRevision(f"wanted a revision of the repository at {root}, got {revision!r}")
    name = parsed.stdout.strip()
    path = root / "build" / "base" / name
    if not (path / "setup.py").exists():
        path.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run([*git, "archive", name], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(path)], input=packed.stdout, check=True)
    return SourceTree(path, name, built(path))


def built(path: Path) -> str:
    """Builds a tree's extension unless that was done; what went wrong, or an empty string."""
    done = path / "build" / "base-built"
    if done.exists():
        return ""
    if not (path / "csrc").is_dir():
        return "it has no extension"
    terminal.tell(f"building the extension of {path.name}")
    done.parent.mkdir(exist_ok=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    build = subprocess.run(command, cwd=path, capture_output=True, text=True)
    if build.returncode:
        return f"its extension could not be built: {build.stderr.strip().rpartition(chr(10))[2]}"[:300]
    done.touch()
    return ""


class RevisionProcess:
    """revision_worker.py on a tree.

    ``ask`` raises Unavailable with the reason where an order fails. What is asked next goes to a
    new process: the old one may hang, or have lost its GPU.
    """

    def __init__(self, tree: SourceTree, threads: int, limit: float) -> None:
        script = Path(__file__).with_name("revision_worker.py")
        self._command, self._limit = [sys.executable, str(script), str(tree.path), str(threads)], limit
        self._process: subprocess.Popen[str] | None = None
        self._messages: Any = None

    def ask(self, **order: Any) -> dict[str, Any]:
        if self._process is None:
            self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._messages}
            self._process = subprocess.Popen(self._command, text=True, cwd="/", start_new_session=True, **pipes)
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(order), file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], self._limit)[0]:
            answer = {"reason": f"no answer within {self._limit:.0f} s"}
        elif line := process.stdout.readline():
            answer = json.loads(line)
        else:
            answer = {"reason": processes.ending(process.wait(), self._messages) or processes.NO_RESULT}
        if "reason" in answer:
            self.close()
            raise Unavailable(answer["reason"])
        return answer

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            processes.kill(process)
            with contextlib.suppress(BrokenPipeError):
                process.communicate()
            self._messages.close()


class RevisionCall:
    """A call of a case in a tree's process, which times itself; its result, where it is called."""

    def __init__(self, process: RevisionProcess, case: OpCase, backend: str, folder: Path) -> None:
        inputs, self._result = folder / "case.pt", folder / f"result-{id(process)}.pt"
        torch.save(order_of(case), inputs)
        self._process, self._device = process, case.device
        process.ask(prepare=str(inputs), backend=backend, result=str(self._result))

    def __call__(self) -> Any:
        return torch.load(self._result, map_location=self._device, weights_only=True)

    def seconds(self, times: int) -> float:
        """Of so many calls."""
        return times * float(self._process.ask(chain=times)["seconds"])


@contextlib.contextmanager
def beside(revision: str, run: ResultLine, limit: float) -> Iterator[PeersOf]:
    """The peers of an op by its name, backends and device: ours in this tree, and at ``revision``.

    Raises NoSuchRevision.
    """
    other = tree_of(revision)
    run.base = {"revision": revision, "commit": other.name, "note": other.note}
    if other.note:
        terminal.tell(f"{other.name}: {other.note}")
    trees = (SourceTree(ROOT, ""), other)
    workers = [RevisionProcess(tree, torch.get_num_threads(), limit) for tree in trees]

    def peers(op: str, backends: list[str] | None, device: str) -> list[Peer]:
        return [
            Peer(
                f"xmemk {backend} at {tree.name}" if tree.name else f"xmemk {backend}",
                lambda case, worker=worker, backend=backend: RevisionCall(worker, case, backend, Path(folder)),  # type: ignore[misc]
                ours=not tree.name,
            )
            for backend in backends or backends_of_ours(op, device)
            for tree, worker in zip(trees, workers)
        ]

    with tempfile.TemporaryDirectory() as folder:
        try:
            yield peers
        finally:
            for worker in workers:
                worker.close()


def order_of(case: OpCase) -> dict[str, Any]:
    """What a worker needs to know of a case: tensors and plain values alone."""
    op, arguments, options = call_of_ours(case)
    how = case.op.rsplit("_", 1)[-1] if case.op.endswith(("_train", "_backward")) else "call"
    plain = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in arguments)
    gradient = None if how == "call" else readout_gradient(case.inputs)
    return {"op": op, "arguments": plain, "options": options, "how": how, "d_readout": gradient}
