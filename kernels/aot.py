"""Compiles every launch of the kernels ahead of time, for every architecture, on a machine that need not have a GPU.

The host code runs as it is, on tensors without data ("meta"), while launches are recorded instead of made. What is
compiled is therefore what a GPU would be asked to run: the same types, specialisations and configurations.

``python -m xmemk.kernels.aot [--arch 90 ...] [--quick]`` prints a table of registers, spills, shared memory and matrix
instructions, and fails where a kernel spills, does not fit, or multiplies without the matrix units it should use.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..inputs import MemoryInputs, QueryInputs
from . import configs

# Bytes of shared memory that one program may have (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}

# The instruction that a kernel's 16-bit products must become.
MATRIX = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}

# Kernels that multiply 16-bit matrices.
MULTIPLY = ("split_maxima", "split_lse", "split_weights", "multiply_values", "multiply_parts")

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel with the types and constants of one launch; hashable, and small enough to send to another process."""

    module: str
    kernel: str
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    aligned: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What ptxas made of a launch; sizes in bytes."""

    launch: Launch
    architecture: int
    registers: int
    stack: int
    local: int
    shared: int
    matrix: int  # matrix instructions of the architecture's own kind
    problems: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        warps = dict(self.launch.options).get("num_warps", 4)
        named = {name: value for name, value in _constants(self.launch).items() if name.isupper()}
        sizes = " ".join(f"{name}={value}" for name, value in named.items())
        numbers = (self.architecture, warps, self.registers, self.stack, self.local, self.shared, self.matrix)
        return self.launch.kernel, *map(str, numbers), sizes, "; ".join(self.problems)


HEAD: tuple[str, ...] = ("kernel", "sm", "warps", "registers", "stack", "local", "shared", "matrix", "constants", "problems")


def cases() -> dict[str, Callable[[], object]]:
    """Calls whose launches together are all kernels in all forms. XMem's sizes at 480p unless the name says more."""
    from . import affinity_topk, memory_read, memory_read_backward, readout_topk, sized

    def read(n: int = 24580, q: int = 1620, k: int = 30, o: int = 1, **more: Any) -> object:
        memory, queries = meta(n, q, objects=o, **more)
        weight, index, _ = affinity_topk(memory, queries, k, True)
        return readout_topk(memory.mv, weight, index)

    def in_place(frames: int = 16200, long_term: int = 10000, k: int = 30, o: int = 1, **more: Any) -> object:
        memory, queries = meta(0, 1620, objects=o, segments=(long_term, *(frames,) * 3), **more)
        table = sized.new_table(queries.qk)
        sized.write(table, sized.rows([(long_term, 0, 0), (1620, 0, 0), (6480, 3240, 3240), (0, 0, 0)]))
        return sized.memory_read(memory, table, frames + long_term, queries, k, True)

    def dense(n: int = 24580, q: int = 1620, o: int = 1, usage: bool = True, **more: Any) -> object:
        return memory_read(*meta(n, q, objects=o, **more), None, usage)

    def train(k: int | None, n: int = 1728, q: int = 576, dtype: torch.dtype = torch.float16, **more: Any) -> object:
        memory, queries = meta(n, q, dtype=dtype, **more)
        b, o, cv, _ = memory.mv[0].shape
        d_readout = torch.empty((b, o, cv, q), dtype=dtype, device="meta")
        d_usage = None if dtype == torch.float32 else torch.empty((b, n), device="meta")
        if k is None:
            none = torch.empty((b, q, 0), device="meta")
            return memory_read_backward(memory, queries, none, none.long(), d_readout, d_usage)
        weight, index, _ = affinity_topk(memory, queries, k, False)
        return memory_read_backward(memory, queries, weight, index, d_readout, d_usage)

    half, bfloat, single = torch.float16, torch.bfloat16, torch.float32
    return {
        "topk float16": lambda: read(),
        "topk float32, batch, no shrinkage": lambda: read(dtype=single, batch=2, shrinkage=False),
        "topk bfloat16, no selection, O=5": lambda: read(dtype=bfloat, o=5, selection=False),
        "topk 1080p": lambda: read(83440, 8160),
        "topk k=256, N=3,000,000": lambda: read(3_000_000, 512, 256),
        "topk small memory": lambda: read(300, 1620),
        "topk segments, CK=128": lambda: read(dtype=half, channels=128, segments=(8100, 0, 130, 16350)),
        "sized float16": lambda: in_place(),
        "sized float32, O=5": lambda: in_place(o=5, dtype=single),
        "dense float16": lambda: dense(),
        "dense float16, O=5, no usage": lambda: dense(o=5, usage=False),
        "dense bfloat16, no selection": lambda: dense(dtype=bfloat, selection=False),
        "dense float32": lambda: dense(dtype=single, shrinkage=False),
        "backward dense float16": lambda: train(None, batch=4, objects=3),
        "backward dense float32": lambda: train(None, batch=4, dtype=single, shrinkage=False, selection=False),
        "backward topk float16": lambda: train(30, batch=4, objects=3),
        "backward topk float32, k=256": lambda: train(256, batch=4, dtype=single, shrinkage=False, selection=False),
        "dense segments, CK=128": lambda: dense(channels=128, segments=(8100, 0, 130, 16350)),
    }


def meta(
    n: int,
    q: int,
    objects: int = 1,
    dtype: torch.dtype = torch.float16,
    batch: int = 1,
    channels: int = 64,
    values: int = 512,
    shrinkage: bool = True,
    selection: bool = True,
    segments: tuple[int, ...] = (),
) -> tuple[MemoryInputs, QueryInputs]:
    """Inputs without data, token-major as the memory keeps them."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta").movedim(1, -1)

    sizes = segments or (n,)
    mk = [empty(batch, size, channels) for size in sizes]
    ms = [empty(batch, size, 1, dtype=torch.float32) for size in sizes] if shrinkage else None
    mv = [empty(batch, size, objects, values) for size in sizes]
    qe = empty(batch, q, channels) if selection else None
    return MemoryInputs(mk, ms, mv), QueryInputs(empty(batch, q, channels), qe)


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches made inside are listed and not run."""
    from triton.runtime.jit import JITFunction

    listed: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if any(not 0 < size < 2**31 for size in grid) or any(size > 65535 for size in grid[1:]):
            raise ValueError(f"{self.__name__}: a grid of {grid}")
        listed.append(_launch(self, args, options))

    with mock.patch.object(JITFunction, "run", run):
        yield listed


def _launch(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """What Triton's launcher makes of arguments: 1 and None are constants, and what 16 divides is known to be so."""
    signature: list[tuple[str, Any]] = []
    constants: list[tuple[tuple[int, ...], Any]] = []
    aligned: list[tuple[int, ...]] = []

    def describe(value: Any, path: tuple[int, ...], constexpr: bool, special: bool) -> Any:
        if isinstance(value, tuple) and not constexpr:
            parts = [describe(v, (*path, i), False, True) for i, v in enumerate(value)]
            # Kernels read the fields of a struct by name.
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if constexpr or value is None or (special and isinstance(value, int) and value == 1):
            constants.append((path, value))
            return "constexpr"
        if isinstance(value, Tensor):
            aligned.append(path)
            return "*" + _TYPES[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if special and value % 16 == 0:
            aligned.append(path)
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    options = dict(options)
    by_name = {p.name: options.pop(p.name) for p in kernel.params if p.name in options}
    values = {**dict(zip((p.name for p in kernel.params), args)), **by_name}
    if len(args) + len(by_name) != len(kernel.params) or len(values) != len(kernel.params):
        raise TypeError(f"{kernel.__name__}: wanted {len(kernel.params)} arguments, got {len(args) + len(by_name)}")
    for i, p in enumerate(kernel.params):
        signature.append((p.name, describe(values[p.name], (i,), p.is_constexpr, not p.do_not_specialize)))
    return Launch(
        module=kernel.fn.__module__,
        kernel=kernel.__name__,
        signature=tuple(signature),
        constants=tuple(constants),
        aligned=tuple(aligned),
        options=tuple(options.items()),
    )


def launches(architecture: int, only: Callable[[str], bool] = lambda name: True) -> list[Launch]:
    """All different launches of :func:`cases` on an architecture."""
    with configs.assumed(architecture), recorded() as listed:
        for name, call in cases().items():
            if only(name):
                call()
    return list(dict.fromkeys(listed))


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compiles one launch and reads what came out of it."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    source = ASTSource(
        fn=kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={path: [["tt.divisibility", 16]] for path in launch.aligned},
    )
    options = {**dict(launch.options), "enable_fp_fusion": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    usage, sass = _inspect(compiled.asm["cubin"])
    match = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump printed no registers of {launch.kernel}: {usage[-300:]}")
    registers, stack, local = map(int, match.groups())
    matrix = len(re.findall(rf"\b{MATRIX[architecture]}\b", sass))
    problems = []
    if stack or local or re.search(r"\b(LDL|STL)\b", sass):
        problems.append("spills")
    if compiled.metadata.shared > SHARED_LIMIT[architecture]:
        problems.append(f"more than {SHARED_LIMIT[architecture]} bytes of shared memory")
    if launch.kernel in MULTIPLY and not matrix:
        problems.append(f"no {MATRIX[architecture]}")
    return Compiled(launch, architecture, registers, stack, local, compiled.metadata.shared, matrix, tuple(problems))


def _inspect(cubin: bytes) -> tuple[str, str]:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        texts = []
        for option in ("-res-usage", "-sass"):
            done = subprocess.run([tool, option, path], capture_output=True, text=True, check=True)
            texts.append(done.stdout + done.stderr)
    return texts[0], texts[1]


def compile_all(jobs: list[tuple[Launch, int]], processes: int = 2) -> Iterator[Compiled]:
    """Results in the order of the jobs, compiled in fresh processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(compile_launch, *zip(*jobs))


def _constants(launch: Launch) -> dict[str, Any]:
    names = [name for name, _ in launch.signature]
    return {names[path[0]]: value for path, value in launch.constants if len(path) == 1}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m xmemk.kernels.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=configs.ARCHITECTURES, default=configs.ARCHITECTURES)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    jobs = [(x, arch) for arch in options.arch for x in launches(arch, lambda name: options.only in name)]
    rows = [HEAD]
    bad = 0
    for compiled in compile_all(jobs, options.processes):
        rows.append(compiled.row())
        bad += bool(compiled.problems)
        print(f"{len(rows) - 1} of {len(jobs)} compiled", end="\r", file=sys.stderr)
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"{len(jobs)} kernels, {bad} with problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
