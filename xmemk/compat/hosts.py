"""Finding hosts among loaded modules, and what takes the place of their memory code."""

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
from .report import Report
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

# Where the hosts keep their memory code, below the package or folder that is named as a target.
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
    """What :func:`xmemk.patch` was asked for."""

    groups: str
    verify: bool
    backend: str
    functions: bool


@dataclass
class Host:
    """One copy of a host's memory code: its manager, if loaded, and its functions, by name."""

    family: Family
    where: str
    manager: type | None = None
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)


def load(target: str) -> None:
    """Imports a host's memory code by the name of its package, module or folder. ModuleNotFoundError if not there."""
    importlib.import_module(target)
    for place in _PLACES:
        try:
            there = importlib.util.find_spec(f"{target}.{place}") is not None
        except (ModuleNotFoundError, AttributeError):  # a part in between is missing, or is no package
            there = False
        if there:
            importlib.import_module(f"{target}.{place}")


def loaded_modules() -> Iterator[tuple[str, ModuleType]]:
    """All loaded modules that are not ours, by name."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.split(".")[0] != "xmemk":
            yield name, module


def find(target: str | None, want_functions: bool) -> list[Host]:
    """Hosts whose memory code is in a loaded module, below ``target`` where one is given. UnknownHost, see there."""
    hosts: dict[int, Host] = {}
    for module_name, module in loaded_modules():
        for value in list(vars(module).values()):
            if id(value) in hosts or not looks_like_a_manager(value) or _ours(value):
                continue
            if within(value.__module__, target):
                hosts[id(value)] = Host(family_of(value, FAMILIES), f"{value.__module__}.{value.__name__}", value)
        if want_functions and within(module_name, target):
            found = _own_functions(module_name, module)
            if found:
                family = _family_by_functions(found, module_name)
                hosts[id(module)] = Host(family, module_name, functions=found)
    return list(hosts.values())


def subclasses(original: type) -> list[type]:
    """Classes that others built on a host's manager, of any generation; a patch does not replace those."""
    found: dict[type, None] = {}
    children: list[type] = type.__subclasses__(original)
    for direct in children:
        if not _ours(direct):
            found |= dict.fromkeys([direct, *subclasses(direct)])
    return list(found)


def _ours(manager: type) -> bool:
    """Whether a class is one of ours, builds on one, or is the host's beside one of ours in verification."""
    return "_twin_of_xmemk" in vars(manager) or any(x.__module__.split(".")[0] == "xmemk" for x in manager.__mro__)


def replacements(host: Host, options: Options, report: Report) -> dict[int, tuple[Any, Any]]:
    """id(original) -> (original, ours), ours made for this patch alone."""
    made: dict[int, tuple[Any, Any]] = {}
    if host.manager is not None:
        made[id(host.manager)] = (host.manager, _manager(host, options, report))
    for name, original in host.functions.items():  # of XMem's or Cutie's form
        made[id(original)] = (original, _function(host.family, name))
    return made


def _manager(host: Host, options: Options, report: Report) -> type:
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


class _Made(type):
    """Of managers that are made for a patch: pickle finds no such class by name, and makes it again."""

    groups: str
    backend: str


def _xmem_manager(groups: str, backend: str) -> _Made:
    base = xmem.MemoryManager
    own = {"groups": groups, "backend": backend, "__module__": base.__module__, "__doc__": base.__doc__}
    return _Made("MemoryManager", (base,), own)


copyreg.pickle(_Made, lambda made: (_xmem_manager, (made.groups, made.backend)))


def _function(family: Family, name: str) -> Callable[..., Any]:
    ours: Any = getattr(cutie if family is CUTIE else functions, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    patched.__name__ = patched.__qualname__ = name
    patched.__module__, patched.__doc__ = ours.__module__, ours.__doc__
    return patched


def _own_functions(module_name: str, module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The four functions, where this module is the one that defines them all."""
    found = {name: vars(module).get(name) for name in XMEM.functions}
    if all(callable(f) and getattr(f, "__module__", None) == module_name for f in found.values()):
        return found  # type: ignore[return-value]
    return {}


def _family_by_functions(found: dict[str, Callable[..., Any]], where: str) -> Family:
    complaint: UnknownHost | None = None
    for family in (XMEM, CUTIE):
        try:
            check_functions(found, family, where)
        except UnknownHost as error:
            complaint = complaint or error
        else:
            return family
    assert complaint is not None
    raise complaint


def within(name: str, target: str | None) -> bool:
    """Whether this is the module or package ``target``, or below it; everything is below None."""
    return target is None or name == target or name.startswith(target + ".")
