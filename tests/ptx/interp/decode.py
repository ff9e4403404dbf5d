"""Turns the instructions of a kernel into the tables that the core executes.

Registers, constants, special registers and parameters all become numbered registers, the constants
first. What an instruction is called for the core says what it does; sizes, offsets and labels go
along as numbers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from .ptx import Instruction, Kernel, UnknownPtx

# Kinds of constants, as in core/machine.h.
_SPECIAL = {
    "%tid.x": 1,
    "%ctaid.x": 2,
    "%ctaid.y": 3,
    "%ctaid.z": 4,
    "%nctaid.x": 5,
    "%nctaid.y": 6,
    "%nctaid.z": 7,
    "%laneid": 8,
    "%ntid.x": 9,
}
_ZERO = {"%tid.y", "%tid.z"}
_PARAMETER = 16
_REGISTER_BITS = {"p": 1, "rs": 16, "h": 16, "r": 32, "f": 32, "rd": 64, "fd": 64}
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]")


@dataclass
class Row:
    """One instruction as the core takes it."""

    opcode: str
    guard: int
    negated: bool
    operands: list[int]
    results: int
    numbers: list[int]


@dataclass
class Tables:
    rows: list[Row] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    constants: list[tuple[int, int, int]] = field(default_factory=list)  # register, kind, value
    shared_granule: int = 4  # log2 of the bytes of the smallest access
    global_granule: int = 4


class _Decoder:
    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        self.registers: dict[str, int] = {}
        self.constants: dict[tuple[int, int, int], int] = {}  # bits, kind, value
        self.tables = Tables()
        self.here = Instruction("", ())

    def unknown(self, why: str = "") -> UnknownPtx:
        return UnknownPtx(f"{self.kernel.name}: the interpreter does not know '{self.here}'{why and ': ' + why}")

    # Registers are numbered in the order in which they appear, constants from -1 down; both are
    # settled at the end.
    def register(self, name: str) -> int:
        if name == "_":
            raise self.unknown("a result that is not kept")
        kind = re.fullmatch(r"%([a-z]+)\d+", name)
        if kind is None or kind[1] not in _REGISTER_BITS:
            raise self.unknown(f"register {name}")
        return self.registers.setdefault(name, len(self.registers))

    def sink(self, bits: int) -> int:
        return self.registers.setdefault(f"_{bits}", len(self.registers))

    def result(self, name: str, bits: int) -> int:
        return self.sink(bits) if name == "_" else self.register(name)

    def constant(self, bits: int, kind: int, value: int) -> int:
        return self.constants.setdefault((bits, kind, value), -1 - len(self.constants))

    def value(self, text: str, bits: int) -> int:
        """The register of an operand: a register, a number of so many bits, a special register."""
        if text in _SPECIAL:
            return self.constant(bits, _SPECIAL[text], 0)
        if text in _ZERO:
            return self.constant(bits, 0, 0)
        if text.startswith("%"):
            return self.register(text)
        if text == "global_smem":
            return self.constant(bits, 0, 0)
        if text[:2].lower() == "0f":
            return self.constant(bits, 0, int(text[2:], 16))
        if text[:2].lower() == "0d":
            return self.constant(bits, 0, int(text[2:], 16))
        try:
            number = int(text.rstrip("U"), 0)
        except ValueError:
            raise self.unknown(f"operand {text}") from None
        return self.constant(bits, 0, number & ((1 << bits) - 1))

    def address(self, text: str, bits: int) -> tuple[int, int]:
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise self.unknown(f"address {text}")
        return self.value(found[1], bits), int(found[2] or "0", 0)

    def add(self, opcode: str, operands: list[int], results: int, numbers: list[int] | None = None) -> None:
        guard = self.register(self.here.guard) if self.here.guard else _NO_GUARD
        self.tables.rows.append(Row(opcode, guard, self.here.negated, operands, results, list(numbers or ())))

    def decode(self) -> Tables:
        for one in self.kernel.instructions:
            self.here = one
            parts = one.opcode.split(".")
            _FAMILIES.get(parts[0], _plain)(self, parts, one.operands)
        return self.settled()

    def settled(self) -> Tables:
        t = self.tables
        shift = len(self.constants)
        for (bits, kind, value), number in self.constants.items():
            t.constants.append((-1 - number, kind, value))
            t.widths.append(bits)
        for name in self.registers:
            sink = name.startswith("_")
            t.widths.append(int(name[1:]) if sink else _register_bits(name))

        def place(number: int) -> int:
            return -1 - number if number < 0 else number + shift

        for row in t.rows:
            row.operands = [place(number) for number in row.operands]
            row.guard = -1 if row.guard == _NO_GUARD else place(row.guard)
        return t

    def granules(self, space: str, size: int) -> None:
        log = size.bit_length() - 1
        if space == "shared":
            self.tables.shared_granule = min(self.tables.shared_granule, log)
        else:
            self.tables.global_granule = min(self.tables.global_granule, log)


_NO_GUARD = 1 << 30


def decode(kernel: Kernel) -> Tables:
    return _Decoder(kernel).decode()


def _bits(suffix: str) -> int:
    """Of a type: b32, f16x2, pred."""
    if suffix == "pred":
        return 1
    if suffix in ("f16x2", "bf16x2"):
        return 32
    return int(re.sub(r"\D", "", suffix))


def _register_bits(name: str) -> int:
    return _REGISTER_BITS[re.sub(r"[%\d]", "", name)]


def _vector(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


# How wide the operands of the plain families are: the same as the type unless said here, by
# position.
_COUNT_OF_BITS = {"shl": 1, "shr": 1, "bfe": 1}


def _plain(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    """d, a, b, ... all of the type at the end of the name."""
    if not operands or (not (parts[-1][-1:].isdigit() or parts[-1] == "pred")):
        raise d.unknown()
    bits = _bits(parts[-1])
    widths = [bits] * (len(operands) - 1)
    for n in range(_COUNT_OF_BITS.get(parts[0], len(widths)), len(widths)):
        widths[n] = 32
    if "wide" in parts and len(widths) > 2:
        widths[2] = 2 * bits
    registers = [d.register(operands[0])] + [d.value(x, w) for x, w in zip(operands[1:], widths)]
    d.add(".".join(parts), registers, 1)


def _cvt(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    d.add(".".join(parts), [d.register(operands[0])] + [d.value(x, _bits(parts[-1])) for x in operands[1:]], 1)


def _setp(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    names = operands[0].split("|")
    if (len(names) > 1 and names[1] != "_") or len(operands) != 3:
        raise d.unknown("a second result or a combination")
    d.add(".".join(parts), [d.register(names[0])] + [d.value(x, _bits(parts[-1])) for x in operands[1:]], 1)


def _selp(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    bits = _bits(parts[-1])
    values = [d.value(x, w) for x, w in zip(operands[1:], (bits, bits, 1))]
    d.add(".".join(parts), [d.register(operands[0]), *values], 1)


def _mov(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    bits = _bits(parts[-1])
    to, value = operands
    if to.startswith("{"):
        names = _vector(to)
        part = bits // len(names)
        registers = [d.result(name, part) for name in names]
        d.add("mov.unpack", [*registers, d.value(value, bits)], len(names), [part])
    elif value.startswith("{"):
        names = _vector(value)
        part = bits // len(names)
        d.add("mov.pack", [d.register(to), *(d.value(name, part) for name in names)], 1, [part])
    else:
        d.add(".".join(parts), [d.register(to), d.value(value, bits)], 1)


_CACHE_HINTS = {"ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "evict_first", "evict_last", "evict_normal"}


def _memory(d: _Decoder, parts: list[str]) -> tuple[str, int, int, int]:
    """The space, bits of an address, bytes of an element and their number, of ld.global.v2.b32."""
    space, count = parts[1].removesuffix("::cta"), 1
    if space not in ("shared", "global"):
        raise d.unknown("a space of memory")
    for part in parts[2:-1]:
        if re.fullmatch(r"v\d", part):
            count = int(part[1])
        elif part.split("::")[-1] not in _CACHE_HINTS:
            raise d.unknown(part)
    size = _bits(parts[-1]) // 8
    d.granules(space, size)
    return space, 32 if space == "shared" else 64, size, count


def _ld(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    if parts[1] == "param":
        name = operands[1].strip("[] ")
        if name not in d.kernel.parameters:
            raise d.unknown("a part of a parameter")
        bits = _bits(parts[-1])
        kind = _PARAMETER + d.kernel.parameters.index(name)
        to, value = d.register(operands[0]), d.constant(bits, kind, 0)
        wider = _register_bits(operands[0]) > bits
        sign = "s" if parts[-1][0] == "s" else "u"
        d.add(f"cvt.{sign}{_register_bits(operands[0])}.{sign}{bits}" if wider else f"mov.b{bits}", [to, value], 1)
        return
    if parts[-1][0] == "s" and _bits(parts[-1]) < 32:
        raise d.unknown("a load that extends a sign")
    space, bits, size, count = _memory(d, parts)
    names = _vector(operands[0])
    if len(names) != count:
        raise d.unknown("a vector")
    at, offset = d.address(operands[1], bits)
    d.add(f"ld.{space}", [*(d.result(name, 8 * size) for name in names), at], count, [offset, size, count])


def _st(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    space, bits, size, count = _memory(d, parts)
    names = _vector(operands[1])
    if len(names) != count:
        raise d.unknown("a vector")
    at, offset = d.address(operands[0], bits)
    d.add(f"st.{space}", [at, *(d.value(name, max(16, 8 * size)) for name in names)], 0, [offset, size, count])


def _cp(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    name = ".".join(parts)
    if name == "cp.async.commit_group":
        d.add(name, [], 0)
    elif name == "cp.async.wait_group":
        d.add(name, [], 0, [int(operands[0], 0)])
    elif name.removesuffix(".L2::128B") in ("cp.async.ca.shared.global", "cp.async.cg.shared.global"):
        to, first = d.address(operands[0], 32)
        source, second = d.address(operands[1], 64)
        size = int(operands[2], 0)
        d.granules("shared", 4)
        d.granules("global", 4)
        read = [d.value(operands[3], 32)] if len(operands) > 3 else []
        d.add("cp.async", [to, source, *read], 0, [first, second, size])
    else:
        raise d.unknown()


def _atomic(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    order, operation = parts[2:-2], parts[-2]
    if parts[1] != "global" or set(order) - {"gpu", "relaxed", "acq_rel", "sys"}:
        raise d.unknown()
    returns = parts[0] == "atom"
    bits = _bits(parts[-1])
    d.granules("global", bits // 8)
    at, offset = d.address(operands[returns], 64)
    result = [d.result(operands[0], bits)] if returns else []
    d.add(f"{parts[0]}.{operation}.{parts[-1]}", [*result, at, d.value(operands[-1], bits)], len(result), [offset])


def _shfl(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    results = [d.register(name) for name in operands[0].split("|")]
    d.add(".".join(parts), [*results, *(d.value(x, 32) for x in operands[1:])], len(results))


def _redux(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    d.add(".".join(parts), [d.register(operands[0]), *(d.value(x, 32) for x in operands[1:])], 1)


def _matrix_memory(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    """ldmatrix and stmatrix."""
    count = next((int(part[1:]) for part in parts if re.fullmatch(r"x[124]", part)), 0)
    rest = set(parts[1:]) - {"sync", "aligned", "m8n8", f"x{count}", "trans", "shared", "shared::cta", "b16"}
    if rest or not count:
        raise d.unknown()
    d.granules("shared", 16)
    name = parts[0] + (".trans" if "trans" in parts else "")
    load = parts[0] == "ldmatrix"
    at, offset = d.address(operands[1 if load else 0], 32)
    registers = [d.register(x) for x in _vector(operands[0 if load else 1])]
    d.add(name, [*registers, at] if load else [at, *registers], count if load else 0, [count, offset])


def _mma(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    kind = parts[-3]
    if ".".join(parts) != f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32" or kind not in ("f16", "bf16"):
        raise d.unknown()
    registers = [d.value(x, 32) for operand in operands for x in _vector(operand)]
    d.add(f"mma.{kind}", registers, 4)


def _wgmma(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    name = ".".join(parts).replace(".sync.aligned", "")
    if name in ("wgmma.fence", "wgmma.commit_group"):
        d.add(name, [], 0)
        return
    if name == "wgmma.wait_group":
        d.add(name, [], 0, [int(operands[0], 0)])
        return
    shape = re.fullmatch(r"wgmma\.mma_async\.m64n(\d+)k16\.f32\.(b?f16)\.\2", name)
    in_registers = len(operands) > 1 and operands[1].startswith("{")
    numbers = operands[4:]
    if shape is None or list(numbers[:2]) != ["1", "1"]:
        raise d.unknown()
    transposed = [int(x) for x in numbers[2:]]
    if in_registers:
        transposed = [0, *transposed]
    transposed += [0] * (2 - len(transposed))
    d.granules("shared", 16)
    first = [d.register(x) for x in _vector(operands[1])] if in_registers else [d.value(operands[1], 64)]
    registers = [d.register(x) for x in _vector(operands[0])]
    rest = [*first, d.value(operands[2], 64), d.value(operands[3], 1)]
    # The accumulators are no results: only the wait for the group makes them such.
    d.add(f"wgmma.mma_async.{shape[2]}", [*registers, *rest], 0, [int(shape[1]), in_registers, *transposed])


def _fence(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    if ".".join(parts) not in ("fence.proxy.async.shared::cta", "fence.proxy.async"):
        raise d.unknown()
    d.add("fence.proxy.async", [], 0)


def _bar(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    name = ".".join(parts)
    if name == "bar.warp.sync":
        d.add(name, [d.value(operands[0], 32)], 0)
    elif name in ("bar.sync", "barrier.sync.aligned"):
        d.add("bar.sync", [], 0, [int(operands[0], 0), int(operands[1], 0) if len(operands) > 1 else 0])
    else:
        raise d.unknown()


def _control(d: _Decoder, parts: list[str], operands: tuple[str, ...]) -> None:
    if parts[0] == "bra":
        if operands[0] not in d.kernel.labels or parts[1:] not in ([], ["uni"]):
            raise d.unknown("a label")
        d.add("bra", [], 0, [d.kernel.labels[operands[0]]])
    else:
        d.add({"exit": "ret"}.get(parts[0], parts[0]), [], 0)


_FAMILIES: dict[str, Callable[[_Decoder, list[str], tuple[str, ...]], None]] = {
    "cvt": _cvt,
    "setp": _setp,
    "selp": _selp,
    "mov": _mov,
    "ld": _ld,
    "st": _st,
    "cp": _cp,
    "atom": _atomic,
    "red": _atomic,
    "shfl": _shfl,
    "redux": _redux,
    "ldmatrix": _matrix_memory,
    "stmatrix": _matrix_memory,
    "mma": _mma,
    "wgmma": _wgmma,
    "fence": _fence,
    "bar": _bar,
    "barrier": _bar,
    "bra": _control,
    "ret": _control,
    "exit": _control,
    "trap": _control,
    "nop": _control,
}


def float_bits(x: float) -> int:
    """A float32 as the integer that holds its bits, for parameters."""
    return int(struct.unpack("<I", struct.pack("<f", x))[0])
