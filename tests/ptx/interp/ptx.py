"""Reads the text of one PTX kernel into instructions; what they mean is decode.py's business."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


class UnknownPtx(NotImplementedError):
    """The interpreter does not know an instruction or a directive; it skips none."""


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    guard: str = ""  # the register of a predicate, or ""
    negated: bool = False
    source: str = ""  # file:line, as the compiler wrote it beside the code

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Kernel:
    name: str
    parameters: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int] = field(default_factory=dict)
    threads: int = 0  # of .reqntid, 0 where there is none


_DIRECTIVES = (".reg", ".loc", ".pragma", ".file", ".section")
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|[^,]+?)\s*(?:,|$)")
_LABEL = re.compile(r"\$\w+:")
_LOCATION = re.compile(r"\.loc\b.*//\s*(\S+:\d+):\d+\s*$")


def parse(text: str) -> Kernel:
    """The only kernel of a module."""
    entries = re.findall(r"\.visible\s+\.entry\s+(\w+)", text)
    if len(entries) != 1:
        raise UnknownPtx(f"a module of {len(entries)} kernels; one is read at a time")
    name = entries[0]
    head, body = text[text.index(".entry") :].split("{", 1)
    body = body[: body.index("\n}")]
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ""
    for line in body.split("\n"):
        located = _LOCATION.search(line)
        if located:
            source = located[1]
        code = line.split("//")[0].strip()
        if not code or code.startswith(_DIRECTIVES):
            continue
        label = _LABEL.match(code)
        if label:
            labels[label[0][:-1]] = len(instructions)
            code = code[label.end() :]
        for statement in filter(None, (part.strip() for part in code.split(";"))):
            instructions.append(_instruction(statement, name, source))
    parameters = re.findall(r"\.param\s[^,)]*?(\w+_param_\d+)", head)
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", head)
    return Kernel(name, tuple(parameters), tuple(instructions), labels, int(threads[1]) if threads else 0)


def _instruction(statement: str, kernel: str, source: str) -> Instruction:
    found = _STATEMENT.fullmatch(statement)
    if found is None:
        raise UnknownPtx(f"{kernel}: cannot read '{statement}'")
    negated, guard, opcode, rest = found.groups()
    operands = tuple(re.sub(r"\s+", " ", operand) for operand in _OPERAND.findall(rest))
    return Instruction(opcode, operands, guard or "", bool(negated), source)
