"""Takes the launches that host code makes of Triton kernels, and runs their PTX here instead.

    with taken(architecture=90, seed=1) as runs:
        readout, usage = kernels.memory_read(...)  # on CPU tensors
    findings = [f for run in runs for f in run.findings]

Inside, tensors made without data are poisoned, so that what a kernel reads before anything was
written is seen.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import machine, ptx
from .decode import float_bits

_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
_POISON = torch.tensor([0xC7, 0xFF], dtype=torch.uint8)  # kPoison16 of core/machine.h


@dataclass(frozen=True)
class Compiled:
    program: machine.Program
    shared: int
    warps: int


@dataclass(frozen=True)
class Run:
    """One launch that was taken."""

    kernel: str
    grid: tuple[int, int, int]
    program: machine.Program
    outcome: machine.Outcome
    seconds: float

    @property
    def findings(self) -> tuple[machine.Finding, ...]:
        return self.outcome.findings

    @property
    def instructions(self) -> int:
        return sum(self.outcome.executed)


class Noticed(Exception):
    """A kernel that was changed does something that is reported: the rest need not be run."""


Change = Callable[[ptx.Kernel], ptx.Kernel]


@contextlib.contextmanager
def taken(architecture: int, seed: int = 0, change: Change | None = None) -> Iterator[list[Run]]:
    """Launches inside are run here, each with another seed.

    ``change`` is made to each kernel first, for mutants.
    """
    from triton.runtime.jit import JITFunction

    runs: list[Run] = []

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        with _without_dispatch():
            runs.append(_run(self, args, grid, options, architecture, (1000 * seed + len(runs), seed), change))

    with mock.patch.object(JITFunction, "run", run), _Poisoned():
        yield runs


def _run(
    kernel: Any,
    args: tuple[Any, ...],
    grid: Any,
    options: dict[str, Any],
    architecture: int,
    seeds: tuple[int, int],
    change: Change | None,
) -> Run:
    named = {p.name: options.pop(p.name) for p in kernel.params if p.name in options}
    if len(args) + len(named) != len(kernel.params):
        raise TypeError(f"{kernel.__name__}: takes {len(kernel.params)} arguments, got {len(args) + len(named)}")
    values = [*args, *(named[p.name] for p in kernel.params[len(args) :])]
    call = _Call()
    signature = {p.name: call.describe(p, n, value) for n, (p, value) in enumerate(zip(kernel.params, values))}
    compiled = _compiled(kernel, signature, call.constants, call.aligned, options, architecture)
    program = compiled.program
    if change is not None:
        changed = change(program.kernel)
        program = program if changed is program.kernel else machine.Program(changed)
    sizes = grid(dict(zip(signature, values))) if callable(grid) else grid
    x, y, z = (*(int(size) for size in sizes), 1, 1)[:3]
    scratch = (0,) * (len(program.kernel.parameters) - len(call.parameters))  # Triton's own, of which nothing is used
    launch = machine.Launch(
        (*call.parameters, *scratch), tuple(call.allocations), (x, y, z), compiled.warps, compiled.shared, *seeds
    )
    started = time.perf_counter()
    outcome = program.run(launch)
    if program is not compiled.program and outcome.findings:
        raise Noticed(str(outcome.findings[0]))
    return Run(kernel.__name__, (x, y, z), program, outcome, time.perf_counter() - started)


class _Call:
    """What Triton's launcher makes of arguments.

    1 is a constant, and the compiler knows of what 16 divides.
    """

    def __init__(self) -> None:
        self.constants: dict[tuple[int, ...], Any] = {}
        self.aligned: list[tuple[int, ...]] = []
        self.parameters: list[int] = []
        self.allocations: list[tuple[int, int]] = []

    def describe(self, parameter: Any, number: int, value: Any) -> Any:
        return self._describe(value, (number,), parameter.is_constexpr, not parameter.do_not_specialize)

    def _describe(self, value: Any, path: tuple[int, ...], constexpr: bool, special: bool) -> Any:
        if isinstance(value, tuple) and not constexpr:
            parts = [self._describe(v, (*path, i), False, True) for i, v in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        if constexpr or value is None or (special and type(value) is int and value == 1):
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.nbytes():
                self.allocations.append((storage.data_ptr(), storage.nbytes()))
            return self._argument(value.data_ptr(), "*" + _TYPES[value.dtype], path, special)
        if isinstance(value, bool):
            return self._argument(int(value), "u1", path, False)
        if isinstance(value, float):
            return self._argument(float_bits(value), "fp32", path, False)
        small = -(2**31) <= value < 2**31
        return self._argument(int(value), "i32" if small else "i64", path, special)

    def _argument(self, bits: int, kind: str, path: tuple[int, ...], special: bool) -> str:
        if special and bits % 16 == 0:
            self.aligned.append(path)
        self.parameters.append(bits)
        return kind


_in_memory: dict[str, Compiled] = {}


def _compiled(
    kernel: Any,
    signature: dict[str, Any],
    constants: dict[tuple[int, ...], Any],
    aligned: Sequence[tuple[int, ...]],
    options: dict[str, Any],
    architecture: int,
) -> Compiled:
    """From memory, from build/ptx, or from the compiler."""
    version = importlib.metadata.version("triton")
    parts = (version, architecture, kernel.cache_key, signature, constants, aligned, sorted(options.items()))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    if key not in _in_memory:
        path = machine.BUILD / version / f"{kernel.__name__}-{architecture}-{key}.json"
        if not path.exists():
            made = _compile(kernel, signature, constants, aligned, options, architecture)
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(made))
            fresh.replace(path)
        made = json.loads(path.read_text())
        program = machine.Program(ptx.parse(made["ptx"]))
        _in_memory[key] = Compiled(program, made["shared"], made["warps"])
    return _in_memory[key]


def _compile(
    kernel: Any,
    signature: dict[str, Any],
    constants: dict[tuple[int, ...], Any],
    aligned: Sequence[tuple[int, ...]],
    options: dict[str, Any],
    architecture: int,
) -> dict[str, Any]:
    """As far as PTX, without ptxas, and past Triton's cache: kernels here have no code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants,
        attrs={path: [["tt.divisibility", 16]] for path in aligned},
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder),
        mock.patch.object(CUDABackend, "make_cubin", lambda *_, **__: b""),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(options))
    return {"ptx": compiled.asm["ptx"], "shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps}


@functools.cache
def _makers() -> frozenset[Any]:
    """The operators that make tensors without data."""
    names = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
    packets = [getattr(torch.ops.aten, name) for name in names]
    return frozenset(getattr(packet, overload) for packet in packets for overload in packet.overloads())


class _Poisoned(TorchDispatchMode):
    """Tensors made without data hold the core's poison, that of memory nothing has written."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _makers() and isinstance(made, Tensor) and made.device.type == "cpu":
            storage = made.untyped_storage()
            raw = torch.tensor([], dtype=torch.uint8).set_(storage)
            raw.copy_(_POISON.repeat(raw.numel() // 2 + 1)[: raw.numel()])
        return made


def _without_dispatch() -> Any:
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
