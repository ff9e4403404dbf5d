"""Counts argument lists: python tools/argument_lists.py; exit code 1 where a limit is passed.

1. In kernels/, lines that hold one argument name and nothing else, and functions with many
   parameters.
2. In xmemk/ and kernels/, functions that take mk, ms, mv, qk and qe one by one, and the lines of
   their parameters. Structs (xmemk/inputs.py) carry them everywhere else.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BARE_LINES, PARAMETERS, LIST_LINES = 200, 16, 100  # the most there may be
BARE = re.compile(r"^\s*\*{0,2}[A-Za-z_]\w*(: [^=]+)?,( +#.*)?$")
READ = {"mk", "ms", "mv", "qk", "qe"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(folder: str) -> Iterator[tuple[Path, Function, list[ast.arg]]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                variadic = [x for x in (a.vararg, a.kwarg) if x is not None]
                yield path, node, [*a.posonlyargs, *a.args, *a.kwonlyargs, *variadic]


def name_of(path: Path, node: Function) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def bare_lines(folder: str) -> tuple[int, int]:
    """Lines that are one argument name, of how many."""
    lines = [line for path in (ROOT / folder).rglob("*.py") for line in path.read_text().splitlines()]
    return sum(bool(BARE.match(line)) for line in lines), len(lines)


def read_lists(folder: str) -> tuple[list[str], int]:
    """Functions with all parameters of a read, and the lines of their parameter lists."""
    names, lines = [], 0
    for path, node, parameters in functions(folder):
        if {p.arg for p in parameters} >= READ:
            rows = [p.lineno for p in parameters]
            names.append(name_of(path, node))
            lines += max(rows) - min(rows) + 1
    return names, lines


def main() -> int:
    bare, total = bare_lines("kernels")
    many = [name_of(path, node) for path, node, ps in functions("kernels") if len(ps) > PARAMETERS]
    (names, lines), (more, more_lines) = read_lists("xmemk"), read_lists("kernels")
    names, lines = names + more, lines + more_lines
    print(f"kernels/: {bare} of {total} lines are one argument name (at most {BARE_LINES})")
    print(f"kernels/: {len(many)} functions with more than {PARAMETERS} parameters (none)", *many, sep="\n  ")
    print(f"xmemk/, kernels/: {len(names)} functions list a read's arguments, in {lines} lines (at most {LIST_LINES})")
    print(*(f"  {name}" for name in names), sep="\n")
    return int(bare > BARE_LINES or bool(many) or lines > LIST_LINES)


if __name__ == "__main__":
    sys.exit(main())
