"""Benchmarks of an op are reported only if its tests pass: which tests, and their run by pytest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import torch
from xmemk.benchmarks.peers.workloads import FRAME_OPS, GRADIENTS, READS

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds for the tests of all ops together
NOT_RUN = "tests not run: "
SKIPPED = f"{NOT_RUN}some of them were skipped"

_READ = (
    "ops/test_memory_read.py::test_equal_scores",
    "ops/test_memory_read.py::test_segments",
    "ops/test_memory_read.py::test_optional_arguments_and_layouts",
    "ops/test_affinity_topk.py::test_ties_and_orders",
    "ops/test_affinity_topk.py::test_any_k",
    "ops/test_affinity_topk.py::test_lowest_index_among_equals_across_tiles_and_splits",
)
_GRADIENTS = (
    "ops/test_memory_read_backward_cpu.py::test_gradients_of_sharp_reads_are_as_exact_as_plain_ones",
    "ops/test_memory_read_backward_cpu.py::test_fewer_readable_tokens_than_k",
    "ops/test_memory_read_backward_cpu.py::test_upstream_gradients_of_any_strides",
    "ops/test_memory_read_backward_cpu.py::test_only_what_is_wanted_is_computed",
)
_GPU_GRADIENTS = ("kernels/test_gpu_read.py::test_gradients_are_those_of_plain_pytorch_in_float64",)
_GPU_UPKEEP = ("kernels/test_gpu_selection.py",)
# By device and op: tests that are quick and would notice wrong results. The others are `make
# test`'s.
TESTS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "cpu": {
        **dict.fromkeys((*READS, *FRAME_OPS), _READ),
        **dict.fromkeys(GRADIENTS, _GRADIENTS),
        "consolidate": ("ops/test_consolidate.py::test_segments_are_one_memory",),
        "select_prototypes": (
            "ops/test_select_prototypes.py::test_matches_the_oracle",
            "ops/test_select_prototypes.py::test_many_ties",
        ),
        "evict_lfu": ("ops/test_evict_lfu.py::test_matches_the_oracle", "ops/test_evict_lfu.py::test_many_ties"),
    },
    "cuda": {
        **dict.fromkeys((*READS, *FRAME_OPS), ("kernels/test_gpu_read.py::test_memory_read",)),
        **dict.fromkeys(GRADIENTS, _GPU_GRADIENTS),
        **dict.fromkeys(("consolidate", "select_prototypes", "evict_lfu"), _GPU_UPKEEP),
    },
}


def check(ops: Iterable[str], device: str, root: Path = ROOT) -> tuple[dict[str, bool | str], dict[str, list[str]]]:
    """By op True, or why its tests were not run; by red op the names of tests that fail."""
    ops = list(dict.fromkeys(ops))
    if not (root / "tests").is_dir() or not (root / "xmemk" / "__init__.py").exists():
        return dict.fromkeys(ops, f"{NOT_RUN}no checkout"), {}
    if importlib.util.find_spec("pytest") is None:
        return dict.fromkeys(ops, f"{NOT_RUN}pytest is not installed"), {}
    nodes = {op: TESTS[torch.device(device).type][op] for op in ops}
    outcomes, broken = run([node for of_op in nodes.values() for node in of_op], root)
    if broken:
        return {}, {op: [broken] for op in ops}
    failed = {op: [name for name, o in outcomes.items() if o == "failed" and name.startswith(nodes[op])] for op in ops}
    passed = [name for name, outcome in outcomes.items() if outcome == "passed"]
    green = {op: all(any(name.startswith(node) for name in passed) for node in nodes[op]) or SKIPPED for op in ops}
    return {op: green[op] for op in ops if not failed[op]}, {op: names for op, names in failed.items() if names}


def run(nodes: list[str], root: Path) -> tuple[dict[str, str], str]:
    """The outcome of each test of ``nodes``, and what went wrong with the whole run, or "".

    Files and names are given apart: pytest refuses a node whose file skips itself as a whole.
    """
    files = dict.fromkeys(node.partition("::")[0] for node in nodes)
    names = dict.fromkeys(Path(node.rpartition("::")[2]).stem for node in nodes)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", f"--junit-xml={report}"]
        command += [*files, "-k", " or ".join(names)]
        try:
            done = subprocess.run(command, cwd=root / "tests", capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {}, f"the tests did not end within {LIMIT} s"
        lines = (done.stdout + done.stderr).strip().splitlines() or [""]
        if done.returncode not in (0, 1, 5):  # passed, failed, all skipped or deselected
            return {}, f"pytest ended with exit code {done.returncode}: {lines[-1]}"
        outcomes = {}
        for case in ElementTree.parse(report).iter("testcase"):
            module = case.get("classname", "").removeprefix("tests.").replace(".", "/")
            kinds = {child.tag for child in case}
            outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            outcomes[f"{module}.py::{case.get('name')}"] = outcome
    return outcomes, ""
