"""A hash of a function's syntax tree: equal for equal code, whatever its formatting.

Left out, because results do not depend on them: formatting, comments, docstrings, annotations,
assertions, ``pass``, ``del`` of names, imports in bodies, printing and logging, and assignments of
plain values to locals that nobody reads. Locals are numbered in the order in which they are first
bound. Parameters, globals, attributes, constants and decorators keep their names.

The text that is hashed is written here and not by ``ast.dump``, which changes between versions of
Python: the hashes are the same on Python 3.9 to 3.13.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator
from typing import Any

_NO_EFFECT = {"type_comment", "type_params", "kind", "ctx"}  # fields that do not change what code does
_QUIET_FUNCTIONS = {"print"}
_QUIET_OWNERS = {"log", "logger", "logging", "warnings"}
_BODIES = ("body", "orelse", "finalbody")
_PLAIN = (
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.Tuple,
    ast.Subscript,
    ast.Slice,
    ast.UnaryOp,
    ast.USub,
    ast.expr_context,
)


def function_hash(function: ast.FunctionDef) -> str:
    """16 hexadecimal digits for a function or method; the tree is not changed."""
    bare = _Bare().visit(copy.deepcopy(function))
    _drop_dead_assignments(bare)
    _number_locals(bare)
    return short_hash(_text(bare))


def short_hash(text: str) -> str:
    """The first 16 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Bare(ast.NodeTransformer):
    """Removes what has no effect on results."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in list(ast.iter_fields(node)):
            if name in _BODIES and isinstance(value, list):
                statements = [self.visit(statement) for statement in value if not _without_effect(statement)]
                setattr(node, name, [statement for statement in statements if statement is not None])
            elif isinstance(value, list):
                setattr(node, name, [self.visit(x) if isinstance(x, ast.AST) else x for x in value])
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)  # Python 3.12 adds empty strings to some format specifications
        node.values = [x for x in node.values if not (isinstance(x, ast.Constant) and x.value == "")]
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        return node if node.value is None else ast.Assign(targets=[node.target], value=node.value)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body or node.orelse else None


def _without_effect(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Pass, ast.Assert, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(statement, ast.Delete):
        return all(isinstance(target, ast.Name) for target in statement.targets)
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    if isinstance(value, ast.Constant):
        return isinstance(value.value, str)
    return isinstance(value, ast.Call) and _quiet(value.func)


def _quiet(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _QUIET_FUNCTIONS
    owner = function.value if isinstance(function, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id in _QUIET_OWNERS


def _drop_dead_assignments(function: ast.AST) -> None:
    changed = True
    while changed:
        changed = False
        loads = {x.id for x in ast.walk(function) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
        for node, name, body in _statement_lists(function):
            kept = [statement for statement in body if not _is_dead(statement, loads)]
            if len(kept) != len(body):
                setattr(node, name, kept)
                changed = True


def _statement_lists(function: ast.AST) -> Iterator[tuple[ast.AST, str, list[Any]]]:
    for node in ast.walk(function):
        for name in ("body", "orelse"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                yield node, name, body


def _is_dead(statement: ast.stmt, loads: set[str]) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target = statement.targets[0]
    if not isinstance(target, ast.Name) or target.id in loads:
        return False
    return all(isinstance(x, _PLAIN) for x in ast.walk(statement.value))


def _number_locals(function: Any) -> None:
    arguments = function.args
    parameters = {x.arg for x in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    parameters |= {x.arg for x in (arguments.vararg, arguments.kwarg) if x is not None}
    numbers: dict[str, str] = {}

    class Bindings(ast.NodeVisitor):
        def visit_Name(self, node: ast.Name) -> None:
            if isinstance(node.ctx, (ast.Store, ast.Del)) and node.id not in parameters:
                numbers.setdefault(node.id, f"v{len(numbers)}")

    Bindings().visit(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in numbers:
            node.id = numbers[node.id]


def _text(node: Any) -> str:
    """Fields in order, empty ones left out."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in _NO_EFFECT]
        inside = ",".join(f"{name}={_text(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({inside})"
    return "[" + ",".join(map(_text, node)) + "]" if isinstance(node, list) else repr(node)
