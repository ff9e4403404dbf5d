"""The package's kernels, compiled for sm_90 and run from their PTX, right and with faults.

In a process of their own, since Triton must not be imported where its interpreter may be wanted
later.
"""

import atexit
import functools
import importlib.util
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

# What is not in build/ptx is compiled first.
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

ESSENTIAL = [
    "topk float16",
    "topk bfloat16, segments",
    "topk float16, uncertified",
    "topk small memory",
    "dense float16",
    "dense float32",
    "dense float16, uncertified",
    "sized float16",
    "potentiate float16",
    "backward dense float32",
    "backward topk float16",
]


def _start():
    import torch
    from interpreter import find_kernels

    torch.set_num_threads(1)
    find_kernels()


@functools.cache
def _pool():
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    atexit.register(pool.shutdown)
    return pool


def there(function, *arguments):
    return _pool().submit(function, *arguments).result()


def _case(name):
    import cases

    return next(case for case in cases.CASES if case.name == name)


def _run(name, seed):
    from run import run_case

    result = run_case(_case(name), 90, seed)
    return result.error, [str(finding) for finding in result.findings], result.share


@pytest.mark.parametrize("name", ESSENTIAL)
@pytest.mark.parametrize("seed", [0, 1])
def test_results_are_right_and_nothing_is_found(name, seed):
    error, findings, share = there(_run, name, seed)
    assert error == ""
    assert findings == []
    assert share <= 1


def _essential():
    import cases

    return [case.name for case in cases.CASES if case.essential]


def test_the_essential_cases_are_those_here():
    assert there(_essential) == ESSENTIAL


def _unnoticed(name, kernel, kind):
    import mutate

    case = _case(name)
    mutants = [m for m in mutate.mutants_of(case, 90, 10**6, kernel) if m.kind == kind]
    return len(mutants), [m.place for m in mutants if not mutate.noticed(m, case, 90)]


@pytest.mark.parametrize(
    ("name", "kernel", "kind", "needless"),
    [
        # Two follow another barrier with no access between them.
        ("topk small memory", "weigh_candidates", "without bar.sync", 2),
        ("dense float16", "multiply_values", "without cp.async.wait_group", 0),
        ("dense float16", "multiply_values", "without wgmma.wait_group", 0),
        # Two products of a step have one each; the first may as well be in the group of the second.
        ("dense float16", "multiply_values", "without wgmma.commit_group", 1),
    ],
)
def test_what_is_removed_from_a_kernel_is_noticed(name, kernel, kind, needless):
    count, unnoticed = there(_unnoticed, name, kernel, kind)
    assert count > needless
    assert len(unnoticed) <= needless


def _launched():
    import os
    import tempfile
    from collections import namedtuple

    import torch

    source = (
        "import triton, triton.language as tl\n"
        "@triton.jit\n"
        "def scale(x, out, pair, factor, N, BLOCK: tl.constexpr):\n"
        "    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n"
        "    y = tl.load(x + at * pair[0] + pair[1], mask=at < N, other=0.0)\n"
        "    tl.store(out + at, y * factor, mask=at < N)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "scaling.py")
        with open(path, "w") as file:
            file.write(source)
        sys.path.insert(0, folder)
        import scaling
        from interp import launch

        pair = namedtuple("pair", ["stride", "first"])
        with launch.taken(90) as runs:
            x, out = torch.arange(100.0), torch.empty(40)
            scaling.scale[(2,)](x, out, pair(2, 1), 0.5, 30, 32, num_warps=1)
            scaling.scale[lambda meta: (meta["N"],)](x, out, (1, 90), 1.0, 2, BLOCK=32, num_warps=2)
        return out.tolist(), [run.grid for run in runs], [str(f) for run in runs for f in run.findings]


def test_launches_of_any_kernel_are_taken():
    out, grids, findings = there(_launched)
    assert out[:2] == [90, 91]
    assert out[2:30] == [(2 * t + 1) / 2 for t in range(2, 30)]
    assert all(x != x for x in out[30:])  # nobody wrote there: poison
    assert grids == [(2, 1, 1), (2, 1, 1)]
    assert findings == []
