"""Makes the replacements of a host's memory code, anew for every patch."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

from . import cutie, deva, functions, matanyone, xmem, xmem_verify
from .functions_verify import VerifiedFunctions
from .hosts import HostCode, Options
from .recognition.signatures import CUTIE, DEVA, MATANYONE, XMEM, UnknownHost
from .report import PatchReport

_FUNCTIONS = {XMEM.name: functions, CUTIE.name: cutie, MATANYONE.name: matanyone}


def replacements(host: HostCode, options: Options, report: PatchReport) -> dict[int, tuple[Any, Any]]:
    """id(original) -> (original, ours), where ours are made for this patch alone."""
    pairs: dict[int, tuple[Any, Any]] = {}
    if host.manager is not None:
        pairs[id(host.manager)] = (host.manager, _manager(host, options, report))
    ours: Any = _FUNCTIONS.get(host.family.name)
    if host.functions and options.verify:
        ours = VerifiedFunctions(host.functions, ours, report, host.where)
    for name, original in host.functions.items():
        pairs[id(original)] = (original, _renamed(getattr(ours, name), name))
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


def _renamed(ours: Callable[..., Any], name: str) -> Callable[..., Any]:
    def patched(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    patched.__name__ = patched.__qualname__ = name
    patched.__module__, patched.__doc__ = ours.__module__, ours.__doc__
    return patched
