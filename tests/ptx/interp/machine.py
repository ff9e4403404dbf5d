"""The core, built with g++ when it is first used, and the calls into it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .decode import Tables, decode
from .ptx import Kernel, UnknownPtx

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "ptx"
CORE = Path(__file__).with_name("core")
# Products and sums must round where PTX says so, hence no contraction.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-shared",
    "-fPIC",
)
MOST_FINDINGS = 64
LIMIT = 50_000_000  # instructions of a warp after which its CTA is taken not to end


class _Instruction(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("opcode", "guard", "negated", "operands", "first", "results")]
    _fields_ += [("numbers", ctypes.c_int32 * 4)]


class _Constant(ctypes.Structure):
    _fields_ = [("reg", ctypes.c_int32), ("kind", ctypes.c_int32), ("value", ctypes.c_uint64)]


class _Program(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("code", "pool", "widths", "constants")]
    _fields_ += [
        (n, ctypes.c_int32)
        for n in ("instructions", "operands", "registers", "constant_count", "shared_granule", "global_granule")
    ]


class _Launch(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("parameters", "bases", "sizes")]
    _fields_ += [(n, ctypes.c_int32) for n in ("allocations", "warps", "shared")]
    _fields_ += [("grid", ctypes.c_int32 * 3), *((n, ctypes.c_uint64) for n in ("seed", "gpu", "limit"))]


class _Finding(ctypes.Structure):
    _fields_ = [
        ("instruction", ctypes.c_int32),
        ("count", ctypes.c_uint32),
        ("kind", ctypes.c_char * 28),
        ("detail", ctypes.c_char * 164),
    ]


@functools.cache
def core() -> ctypes.CDLL:
    sources = sorted(CORE.iterdir())
    compiler = os.environ.get("CXX", "g++")
    digest = hashlib.sha256(" ".join([compiler, *FLAGS, *(s.read_text() for s in sources)]).encode()).hexdigest()[:16]
    built = BUILD / f"core-{digest}.so"
    if not built.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            fresh = Path(folder) / "core.so"
            command = [compiler, *FLAGS, "-o", str(fresh), str(CORE / "machine.cpp")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            fresh.replace(built)
    library = ctypes.CDLL(str(built))
    library.ptx_opcode.argtypes = [ctypes.c_char_p]
    library.ptx_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p]
    return library


@dataclass(frozen=True)
class Finding:
    kind: str
    kernel: str
    instruction: int  # its number in the kernel
    text: str  # the instruction, and where it comes from
    detail: str  # of the first time
    count: int

    def __str__(self) -> str:
        return f"{self.kernel}: {self.kind} at {self.text}: {self.detail} ({self.count} times)"


@dataclass(frozen=True)
class Outcome:
    findings: tuple[Finding, ...]
    executed: tuple[int, ...]  # how often warps executed each instruction


@dataclass(frozen=True)
class Launch:
    """parameters: as integers that hold their bits.

    Allocations: (address, bytes) that the kernel may touch.
    """

    parameters: tuple[int, ...]
    allocations: tuple[tuple[int, int], ...]
    grid: tuple[int, int, int] = (1, 1, 1)
    warps: int = 1
    shared: int = 0
    seed: int = 0  # of what changes from launch to launch: turns of warps, order of CTAs
    gpu: int = 0  # seed of what a GPU does always alike: rounding of approximate and matrix instructions


@dataclass
class Program:
    """A kernel decoded for the core."""

    kernel: Kernel
    tables: Tables = field(init=False)

    def __post_init__(self) -> None:
        self.tables = decode(self.kernel)
        self._kept = self._arrays()

    def _arrays(self) -> tuple[Any, ...]:
        t = self.tables
        code = (_Instruction * len(t.rows))()
        pool: list[int] = []
        numbers: dict[str, int] = {}
        for n, row in enumerate(t.rows):
            if row.opcode not in numbers:
                numbers[row.opcode] = core().ptx_opcode(row.opcode.encode())
                if numbers[row.opcode] < 0:
                    instruction = self.kernel.instructions[n]
                    raise UnknownPtx(f"{self.kernel.name}: the interpreter does not know '{instruction}'")
            head = (numbers[row.opcode], row.guard, row.negated, len(row.operands), len(pool), row.results)
            code[n] = _Instruction(*head, (ctypes.c_int32 * 4)(*row.numbers))
            pool += row.operands
        pools = (ctypes.c_int32 * max(1, len(pool)))(*pool)
        widths = (ctypes.c_int32 * max(1, len(t.widths)))(*t.widths)
        constants = (_Constant * max(1, len(t.constants)))(*(_Constant(*c) for c in t.constants))
        program = _Program(
            *(ctypes.addressof(x) for x in (code, pools, widths, constants)),
            len(t.rows),
            len(pool),
            len(t.widths),
            len(t.constants),
            t.shared_granule,
            t.global_granule,
        )
        return program, code, pools, widths, constants

    def run(self, launch: Launch) -> Outcome:
        """Runs a launch on the memory where it lies, and says what it did wrong."""
        if len(launch.parameters) < len(self.kernel.parameters):
            wanted, got = len(self.kernel.parameters), len(launch.parameters)
            raise TypeError(f"{self.kernel.name}: takes {wanted} parameters, got {got}")
        if self.kernel.threads and self.kernel.threads != 32 * launch.warps:
            raise ValueError(f"{self.kernel.name}: was compiled for {self.kernel.threads} threads")
        places = sorted(set(launch.allocations))
        parameters = (ctypes.c_uint64 * max(1, len(launch.parameters)))(*(p % 2**64 for p in launch.parameters))
        bases = (ctypes.c_uint64 * max(1, len(places)))(*(base for base, _ in places))
        sizes = (ctypes.c_uint64 * max(1, len(places)))(*(size for _, size in places))
        raw = _Launch(
            *(ctypes.addressof(x) for x in (parameters, bases, sizes)),
            len(places),
            launch.warps,
            launch.shared,
            (ctypes.c_int32 * 3)(*launch.grid),
            launch.seed,
            launch.gpu,
            LIMIT,
        )
        found = (_Finding * MOST_FINDINGS)()
        executed = (ctypes.c_uint64 * max(1, len(self.tables.rows)))()
        program = self._kept[0]
        count = core().ptx_run(ctypes.byref(program), ctypes.byref(raw), found, MOST_FINDINGS, executed)
        findings = tuple(self._finding(f) for f in found[: min(count, MOST_FINDINGS)])
        return Outcome(findings, tuple(executed[: len(self.tables.rows)]))

    def _finding(self, raw: _Finding) -> Finding:
        instruction = self.kernel.instructions[raw.instruction]
        text = f"instruction {raw.instruction} '{str(instruction)[:90]}' of {instruction.source or 'no known line'}"
        return Finding(raw.kind.decode(), self.kernel.name, raw.instruction, text, raw.detail.decode(), raw.count)
