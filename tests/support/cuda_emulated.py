"""csrc/cuda's kernels on the CPU, built by g++ over tests/cuda_emulation."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from once import locked

ROOT = Path(__file__).parents[2]
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def compiler() -> Any:
    return shutil.which("g++")


@functools.cache
def library() -> Any:
    """Built once for these sources, and kept beside other temporary files."""
    sources = sorted([*(ROOT / "tests" / "cuda_emulation").iterdir(), *(ROOT / "csrc" / "cuda").glob("*.cuh")])
    sources.append(ROOT / "csrc" / "cuda" / "arguments.h")
    command = [compiler(), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-shared"]
    command += ["-fPIC", "-pthread", "-U_FORTIFY_SOURCE", str(ROOT / "tests" / "cuda_emulation" / "kernels.cpp")]
    digest = hashlib.sha256("".join([*command, *(p.read_text() for p in sources)]).encode()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"xmemk-cuda-emulation-{os.getuid()}-{digest}.so"
    with locked(built.with_suffix(".lock")):
        if built.exists():
            return ctypes.CDLL(str(built))
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            fresh = Path(folder) / "kernels.so"
            done = subprocess.run([*command, "-o", fresh], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"the emulation does not build: {done.stderr}")
            fresh.rename(built)
    return ctypes.CDLL(str(built))


def _rows(select: Any, usage: Any, count: Any, size: Any, parts: Any, threads: Any, schedule: Any) -> Any:
    rows, capacity = usage.shape
    out = torch.empty(rows, count, dtype=torch.int64)
    if out.numel() == 0:
        return out  # as the operators: nothing is launched
    sizes = [0, 0, 1] if size is None else [size.data_ptr(), int(size.numel() > 1), int(size.dtype == torch.int64)]
    i64, pointer = ctypes.c_int64, ctypes.c_void_p
    library().run_rows(
        int(select),
        TYPES[usage.dtype],
        pointer(usage.data_ptr()),
        *(i64(n) for n in (*usage.stride(), rows, capacity)),
        pointer(sizes[0]),
        i64(sizes[1]),
        sizes[2],
        i64(count),
        parts,
        threads,
        schedule,
        pointer(out.data_ptr()),
    )
    return out


def select_prototypes(
    usage: Any, num_prototypes: Any, size: Any = None, *, parts: Any = 1, threads: Any = 64, schedule: Any = 0
) -> Any:
    return _rows(True, usage, num_prototypes, size, parts, threads, schedule)


def evict_lfu(usage: Any, keep: Any, size: Any = None, *, parts: Any = 1, threads: Any = 64, schedule: Any = 0) -> Any:
    return _rows(False, usage, keep, size, parts, threads, schedule)


def gather_tokens(x: Any, index: Any, *, blocks: Any = 3, schedule: Any = 0) -> Any:
    four = x if x.dim() == 4 else x.unsqueeze(1)
    out = torch.empty(*x.shape[:-1], index.shape[1], dtype=x.dtype)
    array = ctypes.c_int64 * 4
    library().run_gather(
        x.element_size(),
        ctypes.c_void_p(x.data_ptr()),
        array(*four.stride()),
        array(*four.shape),
        ctypes.c_void_p(index.data_ptr()),
        (ctypes.c_int64 * 2)(*index.stride()),
        ctypes.c_int64(index.shape[1]),
        blocks,
        schedule,
        ctypes.c_void_p(out.data_ptr()),
    )
    return out


def plan_parts(rows: Any, capacity: Any, multiprocessors: Any) -> Any:
    plan = library().plan_parts
    plan.restype = ctypes.c_int64
    return plan(ctypes.c_int64(rows), ctypes.c_int64(capacity), multiprocessors)
