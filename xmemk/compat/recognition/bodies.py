"""The hashes of a host's loaded code: of its manager, its store and its functions.

A loaded function counts by its source only where the source, compiled, is the function. Where the
file was edited since, where the function was replaced at run time, or where there is no source (a
frozen program), it counts by its code object: "code" and 12 digits, for this version of Python
alone.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from .syntax import function_hash, short_hash

FOUR = ("get_similarity", "do_softmax", "get_affinity", "readout")


def bodies_of_manager(manager: type) -> dict[str, str]:
    """Name -> hash of all code that a manager runs: its own, its store's, and the functions'."""
    bodies = _bodies_of_class("MemoryManager", manager)
    store = _global(manager, "KeyValueMemoryStore")
    if isinstance(store, type):
        bodies |= _bodies_of_class("KeyValueMemoryStore", store)
        home = sys.modules.get(store.__module__)
        for name, value in vars(home).items() if home is not None else ():
            if isinstance(value, FunctionType) and value.__module__ == store.__module__:
                bodies[f"kv.{name}"] = body_hash(value)
    for name, function in functions_of_manager(manager).items():
        bodies[name] = body_hash(function)
    return bodies


def functions_of_manager(manager: type) -> dict[str, Callable[..., Any]]:
    """Those of the four functions that a manager uses, and their neighbours, by name."""
    used = {name: _global(manager, name) for name in FOUR}
    functions = {name: function for name, function in used.items() if callable(function)}
    homes = {getattr(function, "__module__", "") for function in functions.values()}
    for name in FOUR:
        for home in homes:
            value = getattr(sys.modules.get(home), name, None)
            if name not in functions and callable(value):
                functions[name] = value
    return functions


def fingerprint(bodies: Mapping[str, str]) -> str:
    """16 digits for all bodies together."""
    return short_hash("\n".join(f"{name} {digits}" for name, digits in sorted(bodies.items())))


def body_hash(function: Callable[..., Any]) -> str:
    """The hash of a loaded function's syntax tree, or of its code object."""
    inner = inspect.unwrap(function)
    node = _definition(inner)
    if node is not None and (inner is function or node.decorator_list):
        return function_hash(node)
    return f"code{short_hash(_loaded_text(function, set()))[:12]}"


def attributes_of_self(function: Callable[..., Any]) -> set[str] | None:
    """The attributes that a method names of its first argument.

    None where its source is not known, or where it passes that argument on.
    """
    node = _definition(inspect.unwrap(function))
    if node is None or not node.args.args:
        return None
    first = node.args.args[0].arg
    attributes = [x for x in ast.walk(node) if isinstance(x, ast.Attribute) and isinstance(x.value, ast.Name)]
    names = {x.attr for x in attributes if isinstance(x.value, ast.Name) and x.value.id == first}
    uses = sum(isinstance(x, ast.Name) and x.id == first for x in ast.walk(node))
    as_owner = sum(isinstance(x.value, ast.Name) and x.value.id == first for x in attributes)
    return names if uses == as_owner else None


def methods_of(cls: type) -> dict[str, FunctionType]:
    """The functions of a class and of its bases, those behind properties among them."""
    methods: dict[str, FunctionType] = {}
    for base in reversed(cls.__mro__[:-1]):
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                methods[name] = function
    return methods


def _bodies_of_class(label: str, cls: type) -> dict[str, str]:
    return {f"{label}.{name}": body_hash(function) for name, function in methods_of(cls).items()}


def _global(manager: type, name: str) -> Any:
    """What a name means in the module of a manager's methods."""
    for method in methods_of(manager).values():
        if name in method.__globals__:
            return method.__globals__[name]
    return None


def _definition(function: Any) -> ast.FunctionDef | None:
    """The definition in a function's file; None where that is not what is loaded."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, getattr(function, "__globals__", None)))
    known = _definitions(text, code.co_filename)
    node, compiled = known.get((code.co_name, code.co_firstlineno), (None, None))
    return node if compiled is not None and _code_text(compiled) == _code_text(code) else None


@functools.lru_cache(maxsize=64)
def _definitions(text: str, filename: str) -> dict[tuple[str, int], tuple[ast.FunctionDef, CodeType]]:
    try:
        tree = ast.parse(text, filename)
        codes = {(c.co_name, c.co_firstlineno): c for c in _codes(compile(text, filename, "exec", dont_inherit=True))}
    except (SyntaxError, ValueError):
        return {}
    nodes = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            at = (node.name, min([node.lineno, *(x.lineno for x in node.decorator_list)]))
            if at in codes:
                nodes[at] = (node, codes[at])
    return nodes


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _loaded_text(function: Any, seen: set[int]) -> str:
    """The code of a function, and of the functions that it wraps or closes over."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):  # scripted or built in; by its identity where it has no text
        return str(getattr(function, "code", id(function)))
    seen.add(id(function))
    inner = [getattr(function, "__wrapped__", None)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            inner.append(cell.cell_contents)
    texts = [_loaded_text(x, seen) for x in inner if callable(x) and id(x) not in seen]
    return repr((_code_text(code), texts))


def _code_text(code: CodeType) -> str:
    """All that decides what a code object does; neither its lines nor its file."""
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return repr((code.co_code, names, counts, [_constant_text(x) for x in code.co_consts]))


def _constant_text(constant: Any) -> str:
    if isinstance(constant, CodeType):
        return _code_text(constant)
    if isinstance(constant, frozenset):  # its order changes from run to run
        return repr(sorted(map(repr, constant)))
    return f"{type(constant).__name__} {constant!r}"
