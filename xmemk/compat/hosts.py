"""Finds hosts among loaded modules, and makes the replacements of their memory code."""

from __future__ import annotations

import copyreg
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from . import cutie, deva, functions, xmem, xmem_verify
from .report import PatchReport
from .signatures import (
    CUTIE,
    DEVA,
    XMEM,
    Family,
    UnknownHost,
    check_functions,
    family_of,
    looks_like_a_manager,
)

FAMILIES = (XMEM, CUTIE, DEVA)

# Where the hosts keep their memory code, below the package or folder named as a target.
_PLACES = (
    "inference.memory_manager",
    "inference.inference_core",
    "memory_manager",
    "inference_core",
    "model.memory_util",
    "model.utils.memory_utils",
    "memory_util",
    "utils.memory_utils",
)


@dataclass(frozen=True)
class Options:
    """The options of :func:`xmemk.patch`."""

    groups: str
    verify: bool
    backend: str
    functions: bool


@dataclass
class HostCode:
    """One copy of a host's memory code: its manager, where loaded, and its functions by name."""

    family: Family
    where: str
    manager: type | None = None
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)


def load(target: str) -> None:
    """Imports a host's memory code, by the name of its package, module or folder.

    ModuleNotFoundError where there is none.
    """
    importlib.import_module(target)
    for place in _PLACES:
        try:
            exists = importlib.util.find_spec(f"{target}.{place}") is not None
        except (ModuleNotFoundError, AttributeError):  # a parent is missing, or is no package
            exists = False
        if exists:
            importlib.import_module(f"{target}.{place}")


def loaded_modules() -> Iterator[tuple[str, ModuleType]]:
    """All loaded modules that are not ours, by name."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.split(".")[0] != "xmemk":
            yield name, module


def find(target: str | None, want_functions: bool) -> list[HostCode]:
    """Hosts whose memory code is in a loaded module, below ``target`` unless that is None.

    :class:`.signatures.UnknownHost` for a host of another form.
    """
    hosts: dict[int, HostCode] = {}
    for module_name, module in loaded_modules():
        for value in list(vars(module).values()):
            if id(value) in hosts or not looks_like_a_manager(value) or _ours(value):
                continue
            if within(value.__module__, target):
                hosts[id(value)] = HostCode(family_of(value, FAMILIES), f"{value.__module__}.{value.__name__}", value)
        if want_functions and within(module_name, target):
            functions = _own_functions(module_name, module)
            if functions:
                family = _family_by_functions(functions, module_name)
                hosts[id(module)] = HostCode(family, module_name, functions=functions)
    return list(hosts.values())


def subclasses(original: type) -> list[type]:
    """All classes below a host's manager but ours. A patch does not replace them."""
    classes: dict[type, None] = {}
    children: list[type] = type.__subclasses__(original)
    for child in children:
        if not _ours(child):
            classes |= dict.fromkeys([child, *subclasses(child)])
    return list(classes)


def _ours(manager: type) -> bool:
    """Whether a class is ours, derives from ours, or is the host's twin of ours in verification."""
    return "_twin_of_xmemk" in vars(manager) or any(x.__module__.split(".")[0] == "xmemk" for x in manager.__mro__)


def replacements(host: HostCode, options: Options, report: PatchReport) -> dict[int, tuple[Any, Any]]:
    """id(original) -> (original, ours), where ours are made for this patch alone."""
    pairs: dict[int, tuple[Any, Any]] = {}
    if host.manager is not None:
        pairs[id(host.manager)] = (host.manager, _manager(host, options, report))
    for name, original in host.functions.items():  # of XMem's or Cutie's form
        pairs[id(original)] = (original, _function(host.family, name))
    return pairs


def _manager(host: HostCode, options: Options, report: PatchReport) -> type:
    original: Any = host.manager
    if host.family is XMEM:
        if not options.verify:
            return _xmem_manager(options.groups, options.backend)
        base: Any = xmem_verify.verified(original, report)
        attributes = {"groups": options.groups, "backend": options.backend}
    elif host.family is DEVA:
        if options.verify:
            raise UnknownHost(f"{host.where}: cannot be verified, since how DEVA stores its tokens is not known")
        base = deva.manager(original)
        attributes = {"backend": options.backend}
    else:
        base = cutie.manager(original, report if options.verify else None)
        attributes = {"backend": options.backend}
    return type("MemoryManager", (base,), {**attributes, "__module__": base.__module__, "__doc__": base.__doc__})


class _ManagerType(type):
    """The type of managers made for a patch.

    Pickle finds no such class by name, and makes it anew.
    """

    groups: str
    backend: str


def _xmem_manager(groups: str, backend: str) -> _ManagerType:
    base = xmem.MemoryManager
    own = {"groups": groups, "backend": backend, "__module__": base.__module__, "__doc__": base.__doc__}
    return _ManagerType("MemoryManager", (base,), own)


copyreg.pickle(_ManagerType, lambda cls: (_xmem_manager, (cls.groups, cls.backend)))


def _function(family: Family, name: str) -> Callable[..., Any]:
    ours: Any = getattr(cutie if family is CUTIE else functions, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    patched.__name__ = patched.__qualname__ = name
    patched.__module__, patched.__doc__ = ours.__module__, ours.__doc__
    return patched


def _own_functions(module_name: str, module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The four functions by name where this module defines them all, else none."""
    functions = {name: vars(module).get(name) for name in XMEM.functions}
    if all(callable(f) and getattr(f, "__module__", None) == module_name for f in functions.values()):
        return functions  # type: ignore[return-value]
    return {}


def _family_by_functions(functions: dict[str, Callable[..., Any]], where: str) -> Family:
    first_error: UnknownHost | None = None
    for family in (XMEM, CUTIE):
        try:
            check_functions(functions, family, where)
        except UnknownHost as error:
            first_error = first_error or error
        else:
            return family
    assert first_error is not None
    raise first_error


def within(name: str, target: str | None) -> bool:
    """Whether a module is ``target`` or below it. Every module is below None."""
    return target is None or name == target or name.startswith(target + ".")
