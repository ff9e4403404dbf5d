"""What the benchmarks' tests share: a run on tiny sizes, the ops' tests taken for green."""

import json
from typing import Any

import pytest
import torch
from xmemk.benchmarks import run
from xmemk.benchmarks.harness import costs, op_tests, sweeps, timing


@pytest.fixture
def tiny_run(monkeypatch: Any, capsys: Any) -> Any:
    """run.main on tiny workloads -> the run, its exit code."""
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # takes long, and is not ours
    monkeypatch.setattr(op_tests, "check", lambda ops, *_: (dict.fromkeys(ops, True), {}))
    monkeypatch.setitem(timing.CHAIN_SECONDS, "cpu", 1e-3)
    monkeypatch.setattr(sweeps, "measure_roof", lambda *_: costs.Roof(100.0, 10.0))
    # Packages and compilers go through a process of their own, which has its own tests.
    monkeypatch.setattr(sweeps, "in_fresh_process", lambda *_, **__: (None, "left out here"))

    def call(*arguments: Any, sizes: Any = "--try") -> Any:
        code = run.main([sizes, "--rounds", "3", "--no-memory", "--json", *arguments])
        said = capsys.readouterr()
        return (json.loads(said.out) if said.out else said.err), code

    return call
