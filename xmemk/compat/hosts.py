"""Finds hosts among loaded modules, and decides what of them is replaced.

The manager is replaced where its signatures and all bodies that it runs are known, are trusted, or
are to be verified. Elsewhere the four functions may be known: then they are replaced alone, and the
host's manager goes on to use them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .recognition.bodies import FOUR, bodies_of_manager, body_hash, fingerprint, functions_of_manager
from .recognition.known import FUNCTIONS, unknown_bodies
from .recognition.signatures import (
    CUTIE,
    DEVA,
    XMEM,
    Family,
    UnknownHost,
    base_manager,
    family_of,
    family_of_functions,
    looks_like_a_manager,
    may_be_inherited,
)
from .recognition.targets import Target, half_imported, in_use, loaded_modules

FAMILIES = (XMEM, CUTIE, DEVA)
_NEEDED = FOUR[:2]  # the functions that a host's manager calls


@dataclass(frozen=True)
class Options:
    """The options of :func:`xmemk.patch`."""

    groups: str
    verify: bool
    backend: str
    functions: bool | str
    trust: frozenset[str] = frozenset()


@dataclass
class HostCode:
    """One copy of a host's memory code: its manager, or its functions by name.

    level: what is replaced, in words. unknown: bodies that no known version has, by name.
    fingerprint: of all its bodies together.
    """

    family: Family
    where: str
    manager: type | None = None
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    level: str = "manager"


@dataclass
class Findings:
    """What is replaced of the loaded hosts, and in words what is not."""

    hosts: list[HostCode] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def find(target: Target, options: Options) -> Findings:
    """The memory code in loaded modules that belong to the target.

    :class:`.recognition.signatures.UnknownHost` where a host can be replaced neither as a whole nor
    by its functions. RuntimeError where it is half imported, or where nothing of it is in use.
    """
    findings = Findings()
    modules = {name: module for name, module in loaded_modules() if target.holds_module(name, module)}
    managers = [x for x in _managers() if target.holds_module(x.__module__, sys.modules.get(x.__module__))]
    managers = [x for x in managers if not _served(x)]
    refused: dict[type, UnknownHost] = {}
    used: dict[int, HostCode] = {}  # id of a function -> the manager that uses it, and is replaced
    unserved: dict[str, UnknownHost] = {}  # by module of functions
    for manager in managers:
        try:
            host = _manager_host(manager, options)
        except UnknownHost as error:
            if not options.functions or (options.functions is True and base_manager(manager) is not None):
                raise
            refused[manager] = error
            modules |= homes(manager)
        else:
            findings.hosts.append(host)
            used |= {id(function): host for function in functions_of_manager(manager).values()}
    if options.functions:
        for name, module in modules.items():
            functions = _own_functions(name, module)
            users = [used[id(function)] for function in functions.values() if id(function) in used]
            if not functions or (options.verify and users):  # there the host's path stays its own
                continue
            try:
                findings.hosts.append(_function_host(name, functions, options, bool(users), findings.left))
            except UnknownHost as error:
                if len(users) < len(functions) and name not in {x for m in refused for x in homes(m)}:
                    raise
                unserved[name] = error
    served = {host.where for host in findings.hosts if host.functions}
    for manager, refusal in refused.items():
        if target.name is None and findings.hosts and not homes(manager):  # of another kind of program
            findings.left.append(f"{_where(manager)}: {refusal}")
            continue
        if not served & set(homes(manager)):
            nor = "".join(f"; nor are its functions: {unserved[name]}" for name in homes(manager) if name in unserved)
            raise UnknownHost(f"{refusal}{nor}")
        findings.left.append(f"{_where(manager)}, which goes on to use xmemk's functions: {refusal}")
    findings.left += [f"the functions of {name}: {error}" for name, error in unserved.items()]
    _check_state(managers, findings)
    return findings


def subclasses(original: type) -> list[type]:
    """All classes below a host's manager but ours. A patch does not replace them."""
    classes: dict[type, None] = {}
    children: list[type] = type.__subclasses__(original)
    for child in children:
        if not _ours(child):
            classes |= dict.fromkeys([child, *subclasses(child)])
    return list(classes)


def _managers() -> list[type]:
    """All classes MemoryManager in loaded modules but ours."""
    managers: dict[int, type] = {}
    for _, module in loaded_modules():
        for value in list(vars(module).values()):
            if id(value) not in managers and looks_like_a_manager(value) and not _ours(value):
                managers[id(value)] = value
    return list(managers.values())


def _manager_host(manager: type, options: Options) -> HostCode:
    if options.functions == "only":
        raise UnknownHost("only functions were to be replaced")
    family = family_of(manager, FAMILIES)
    bodies = bodies_of_manager(manager)
    for name in unknown_bodies(bodies, family.name):
        owner, _, method = name.partition(".")
        further = owner == "MemoryManager" and method not in (*family.methods, *family.inherited)
        if further and may_be_inherited(getattr(manager, method), family):
            del bodies[name]
    host = HostCode(family, _where(manager), manager, {}, unknown_bodies(bodies, family.name), fingerprint(bodies))
    _check_bodies(host, options)
    return host


def _function_host(
    name: str, functions: dict[str, Callable[..., Any]], options: Options, trusted: bool, left: list[str]
) -> HostCode:
    """trusted: whether a manager that is replaced uses them.

    What of them is not replaced goes to ``left``.
    """
    family = family_of_functions(functions, name)
    bodies = {name: body_hash(function) for name, function in functions.items()}
    unknown = {name: digits for name, digits in bodies.items() if digits not in FUNCTIONS[name]}
    level = "functions" if trusted else "functions only"
    host = HostCode(family, name, None, functions, unknown, fingerprint(bodies), level)
    if trusted or options.verify or host.fingerprint in options.trust:
        return host
    for extra in set(unknown) - set(_NEEDED):
        left.append(f"{name}.{extra}: its code {unknown.pop(extra)} is not known")
        del functions[extra]
    _check_bodies(host, options)
    return host


def _check_bodies(host: HostCode, options: Options) -> None:
    if not host.unknown or options.verify or host.fingerprint in options.trust:
        return
    (name, digits), *more = host.unknown.items()
    others = ", ".join(f"{x} {y}" for x, y in more[:3]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
    also = f" (nor are {others})" if more else ""
    raise UnknownHost(
        f"{host.where.removesuffix('.MemoryManager')}.{name}: its code {digits} is not that of a known version of "
        f"{host.family.name}{also}; patch(verify=True) runs both, and gives the fingerprint for trust= where they agree"
    )


def _check_state(managers: list[type], findings: Findings) -> None:
    names = {manager.__module__ for manager in managers} | {x.where for x in findings.hosts if x.functions}
    for name in names:
        if half_imported(name):
            raise RuntimeError(f"{name} is being imported now; call patch when its import is done")
    if managers and not any(in_use(manager) for manager in managers):
        raise RuntimeError(
            f"nothing in use can be patched: no module uses {_where(managers[0])}, and the frame loop beside it "
            "imports its memory by another name; call patch after the application's imports"
        )


def homes(manager: type) -> dict[str, ModuleType]:
    """The modules of the functions that a manager uses."""
    names = {getattr(function, "__module__", "") for function in functions_of_manager(manager).values()}
    return {name: sys.modules[name] for name in names if name in sys.modules and name.split(".")[0] != "xmemk"}


def _own_functions(module_name: str, module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Those of the four functions that this module defines, if the needed ones are among them."""
    values = {name: vars(module).get(name) for name in FOUR}
    own = {name: f for name, f in values.items() if callable(f) and getattr(f, "__module__", None) == module_name}
    return own if set(_NEEDED) <= set(own) else {}


def _ours(manager: type) -> bool:
    """Whether a class is ours, derives from ours, or is the host's twin of ours in verification."""
    return "_twin_of_xmemk" in vars(manager) or any(x.__module__.split(".")[0] == "xmemk" for x in manager.__mro__)


def _served(manager: type) -> bool:
    """Whether a host's manager uses our functions already."""
    functions = functions_of_manager(manager).values()
    return any(getattr(function, "__module__", "").split(".")[0] == "xmemk" for function in functions)


def _where(manager: type) -> str:
    return f"{manager.__module__}.{manager.__qualname__}"
