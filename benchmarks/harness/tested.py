"""Benchmarks of an op are reported only if its tests pass: which tests, and that they need not run twice.

What passed is remembered in build/tested.json for the very contents of the source, the tests and the extension.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds for the tests of all ops together

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
# The tests of each op that are quick, and would notice wrong results; the others are `make test`'s.
TESTS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "cpu": {
        "read": _READ,
        "dense": _READ,
        "train": _GRADIENTS,
        "train-dense": _GRADIENTS,
        "backward": _GRADIENTS,
        "backward-dense": _GRADIENTS,
        "consolidate": ("ops/test_consolidate.py::test_segments_are_one_memory",),
        "select": (
            "ops/test_select_prototypes.py::test_matches_the_oracle",
            "ops/test_select_prototypes.py::test_many_ties",
        ),
        "evict": ("ops/test_evict_lfu.py::test_matches_the_oracle", "ops/test_evict_lfu.py::test_many_ties"),
        "frame": _READ,
        "memory-frame": _READ,
        "video": _READ,
    },
    "cuda": {
        "read": ("kernels/test_gpu_read.py::test_memory_read",),
        "dense": ("kernels/test_gpu_read.py::test_memory_read",),
        "train": ("kernels/test_gpu_read.py::test_gradients_are_those_of_plain_pytorch_in_float64",),
        "train-dense": ("kernels/test_gpu_read.py::test_gradients_are_those_of_plain_pytorch_in_float64",),
        "backward": ("kernels/test_gpu_read.py::test_gradients_are_those_of_plain_pytorch_in_float64",),
        "backward-dense": ("kernels/test_gpu_read.py::test_gradients_are_those_of_plain_pytorch_in_float64",),
        "consolidate": ("kernels/test_gpu_selection.py",),
        "select": ("kernels/test_gpu_selection.py",),
        "evict": ("kernels/test_gpu_selection.py",),
        "frame": ("kernels/test_gpu_read.py::test_memory_read",),
        "memory-frame": ("kernels/test_gpu_read.py::test_memory_read",),
        "video": ("kernels/test_gpu_read.py::test_memory_read",),
    },
}


def check(
    ops: Iterable[str], device: str, said: Callable[[str], None] = lambda _: None, root: Path = ROOT
) -> tuple[dict[str, bool | str], dict[str, list[str]]]:
    """By op: True, or why its tests were not run; and by op that is red the names of the tests that fail."""
    ops = list(dict.fromkeys(ops))
    if not (root / "tests").is_dir() or not (root / "xmemk" / "__init__.py").exists():
        return dict.fromkeys(ops, "tests not run: no checkout"), {}
    if importlib.util.find_spec("pytest") is None:
        return dict.fromkeys(ops, "tests not run: pytest is not installed"), {}
    kind = torch.device(device).type
    memory = root / "build" / "tested.json"
    state = f"{kind} {contents(root)}"
    passed = set(_remembered(memory).get(state, []))
    wanted = list(dict.fromkeys(node for op in ops for node in TESTS[kind][op] if node not in passed))
    failed: list[str] = []
    broken = ""
    if wanted:
        said(f"tests of {', '.join(ops)}")
        failed, right, broken = run(wanted, root)
        green = {node for node in wanted if any(name.startswith(node) for name in right)}
        passed |= {node for node in green if not any(name.startswith(node) for name in failed)}
        if not broken:
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps({state: sorted(passed)}))
    red = {op: [name for name in failed if name.startswith(TESTS[kind][op])] for op in ops}
    if broken:
        red = {op: [broken] for op in ops}
    red = {op: names for op, names in red.items() if names}
    skipped = "tests not run: some of them were skipped"
    return {op: all(n in passed for n in TESTS[kind][op]) or skipped for op in ops if op not in red}, red


def run(nodes: list[str], root: Path) -> tuple[list[str], list[str], str]:
    """The tests among ``nodes`` that fail, in their fixtures too; those that pass; and what went wrong with the run as
    a whole, if anything: a file that cannot be imported ends it."""
    command = [sys.executable, "-m", "pytest", "-q", "-rpfE", "--tb=no", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *(f"tests/{node}" for node in nodes)], cwd=root, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return [], [], f"the tests did not end within {LIMIT} s"
    # A file that skips itself as a whole, as without the extension, has none of the tests that are asked for.
    absent = re.findall(
        r"^ERROR: (?:not found:|found no collectors for) \S*/tests/(\S+)", done.stdout + done.stderr, re.MULTILINE
    )
    others = [node for node in nodes if not any(node.startswith(name) for name in absent)]
    if len(others) < len(nodes) and not re.search(r"^ERROR tests/", done.stdout, re.MULTILINE):
        return run(others, root) if others else ([], [], "")
    failed = re.findall(r"^(?:FAILED|ERROR) tests/(\S+::\S+)", done.stdout, re.MULTILINE)
    passed = re.findall(r"^PASSED tests/(\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 0 or failed:
        return failed, passed, ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return [], [], f"pytest ended with exit code {done.returncode}: {lines[-1] if lines else ''}"


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
        found = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
