"""Benchmarks of an op are reported only if its tests pass: which tests, and that they need not run
twice.

What passed is remembered in build/tested.json for the very contents of the source, the tests and
the extension.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from xmemk.benchmarks.harness.timing import Tell, silent
from xmemk.benchmarks.peers.workloads import FRAME_OPS, GRADIENTS, READS

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds for the tests of all ops together
NOT_RUN = "tests not run: "
SKIPPED = f"{NOT_RUN}some of them were skipped"

_READ = (
    "ops/test_memory_read.py::test_equal_scores",
    "ops/test_memory_read.py::test_segments",
    "ops/test_memory_read.py::test_optional_arguments_and_layouts",
    "ops/test_memory_read_cpu.py::test_ties_and_orders",
    "ops/test_memory_read_cpu.py::test_any_k",
    "ops/test_memory_read_cpu.py::test_lowest_index_among_equals_across_tiles_and_splits",
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
        "consolidate": ("ops/test_consolidate_segments.py::test_segments_are_one_memory",),
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


def check(
    ops: Iterable[str], device: str, tell: Tell = silent, root: Path = ROOT
) -> tuple[dict[str, bool | str], dict[str, list[str]]]:
    """By op True, or why its tests were not run; by red op the names of tests that fail."""
    ops = list(dict.fromkeys(ops))
    if not (root / "tests").is_dir() or not (root / "xmemk" / "__init__.py").exists():
        return dict.fromkeys(ops, f"{NOT_RUN}no checkout"), {}
    if importlib.util.find_spec("pytest") is None:
        return dict.fromkeys(ops, f"{NOT_RUN}pytest is not installed"), {}
    kind = torch.device(device).type
    memory = root / "build" / "tested.json"
    state = f"{kind} {contents(root)}"
    passed = set(_remembered(memory).get(state, []))
    missing = list(dict.fromkeys(node for op in ops for node in TESTS[kind][op] if node not in passed))
    failed: list[str] = []
    if missing:
        tell(f"tests of {', '.join(ops)}")
        outcomes, broken = run(missing, root)
        if broken:
            return {}, {op: [broken] for op in ops}
        failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
        for node in missing:
            of_node = {outcome for name, outcome in outcomes.items() if name.startswith(node)}
            passed |= {node} if "passed" in of_node and "failed" not in of_node else set()
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(json.dumps({state: sorted(passed)}))
    names = {op: [name for name in failed if name.startswith(TESTS[kind][op])] for op in ops}
    red = {op: found for op, found in names.items() if found}
    return {op: passed.issuperset(TESTS[kind][op]) or SKIPPED for op in ops if op not in red}, red


def run(nodes: list[str], root: Path) -> tuple[dict[str, str], str]:
    """The outcome of each test of ``nodes``, and what went wrong with the whole run, if anything."""
    command = [sys.executable, str(Path(__file__).with_name("pytest_outcomes.py")), *nodes]
    try:
        done = subprocess.run(command, cwd=root / "tests", capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {}, f"the tests did not end within {LIMIT} s"
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode not in (0, 1, 5):  # passed, failed, all skipped or deselected
        return {}, f"pytest ended with exit code {done.returncode}: {lines[-1]}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def contents(root: Path) -> str:
    """A digest of everything that the tests' outcome depends on."""
    digest = hashlib.sha256(f"{sys.executable} {torch.__version__}".encode())
    for folder in ("xmemk", "kernels", "csrc", "tests"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".cpp", ".h", ".cu", ".cuh") and path.is_file():
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    for extension in sorted((root / "xmemk").glob("_C*")):
        digest.update(f"{extension.name} {extension.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _remembered(memory: Path) -> dict[str, list[str]]:
    try:
        stored = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
