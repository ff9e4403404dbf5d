"""``xmemk.patch``: replaces a host's memory code in place, and restores it.

Names are rebound in loaded modules by the identity of their values, so ``from x import
MemoryManager as M`` is found wherever it stands. Modules imported later take what the host's own
module holds by then. Attributes of classes, closures and containers are not searched.
"""

from __future__ import annotations

import gc
import importlib.util
import threading
from collections.abc import Iterator
from types import ModuleType, TracebackType
from typing import Any

from . import hosts
from .report import PatchReport

_GROUPS = ("xmem", "exact")
_lock = threading.RLock()
_active: list[Patch] = []


def patch(
    target: str | ModuleType | None = None,
    *,
    verify: bool = False,
    groups: str = "xmem",
    backend: str = "auto",
    functions: bool = True,
) -> Patch:
    """Replaces the memory code of XMem, Track-Anything, Cutie, rf-cutie and of unchanged copies.

    ``with xmemk.patch(): ...`` around existing code, or ``handle = xmemk.patch(); ...;
    handle.undo()``. The host must be imported before, or be named.

    target: a package, module or folder on the path ("cutie", "tracker", "inference"), or a module
        object. It is imported with the memory code below it, and only that memory code is replaced.
        None replaces whatever is loaded.
    verify: runs the host's own code beside ours on every read and every add, and raises
        VerificationError where they differ by more than rounding explains
        (:mod:`xmemk.compat.verify`). Slow, and the host's stores need their memory, too.
    groups: for XMem and Track-Anything, "xmem", equal to the host, or "exact", correct for objects
        that join late.
    backend: as in :func:`xmemk.memory_read`.
    functions: also replaces get_similarity, do_softmax, get_affinity and readout. Never with
        ``verify``, where the host's path stays its own.

    Returns a handle whose ``repr`` and ``report`` say what was bound.

    Existing managers that hold no object yet are taken over. Subclasses of a host's manager under
    another name stay on the host's own code; the report lists them as ``left``. Managers of XMem
    can be pickled and loaded without a patch, though not as instances of XMem's class. Managers of
    other hosts and of ``verify`` cannot be pickled.

    RuntimeError when there is nothing to bind, when the host is patched already, or when one of its
    managers holds objects. UnknownHost (a RuntimeError) when a signature is not known, or when a
    class named MemoryManager derives from a host's. A call that raises has changed nothing.
    """
    name = target.__name__ if isinstance(target, ModuleType) else target
    if name is not None and not isinstance(name, str):
        raise TypeError(f"target: wanted a module, its name or None, got {type(target).__name__}")
    if groups not in _GROUPS:
        raise ValueError(f"groups: wanted one of {', '.join(map(repr, _GROUPS))}, got {groups!r}")
    if verify and groups != "xmem":
        raise ValueError('groups: wanted "xmem" with verify, since "exact" is meant to differ from the host')
    if isinstance(target, str) and not _importable(target):
        raise ModuleNotFoundError(f"target: wanted a host that can be imported, found no module {target!r}")
    options = hosts.Options(groups, verify, backend, functions and not verify)
    with _lock:
        if isinstance(target, (str, ModuleType)):
            hosts.load(str(name))
        handle = Patch(name, options)
        handle._bind()
        _active.append(handle)
        return handle


class Patch:
    """The handle that :func:`patch` returns: a context manager that undoes the patch."""

    def __init__(self, target: str | None, options: hosts.Options) -> None:
        self.target = target
        self.report = PatchReport(verify=options.verify)
        self._options = options
        self._bound: list[tuple[ModuleType, str, Any, Any]] = []  # module, name, original, ours
        self._pairs: dict[int, tuple[Any, Any]] = {}  # id(original) -> original, ours
        self._adopted: list[tuple[Any, Any, dict[str, Any]]] = []  # manager, its class, its attributes before
        self._undone = False

    @property
    def active(self) -> bool:
        """Whether the names are still bound to xmemk's code."""
        return not self._undone

    def undo(self) -> None:
        """Restores the host's originals, also in modules imported since.

        A second call does nothing. A manager of ours that holds objects continues its video.
        """
        with _lock:
            if self._undone:
                return
            self._unbind()
            self._undone = True
            if self in _active:
                _active.remove(self)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

    def __repr__(self) -> str:
        return str(self.report) + ("" if self.active else "\n  undone")

    def _bind(self) -> None:
        loaded_hosts = hosts.find(self.target, self._options.functions)
        if not loaded_hosts:
            raise RuntimeError(self._nothing())
        for host in loaded_hosts:
            self._pairs |= hosts.replacements(host, self._options, self.report)
        managers = {original: ours for original, ours in self._pairs.values() if isinstance(original, type)}
        gc.collect()  # unreferenced managers and subclasses do not count
        left = {x: original for original in managers for x in hosts.subclasses(original)}
        engaged = [x for x in _instances((*managers, *left)) if _engaged(x)]
        if engaged:
            raise RuntimeError(
                f"{len(engaged)} memory managers of {type(engaged[0]).__module__} hold objects already, which would "
                "stay behind; patch before the first frame, or after clear_memory()"
            )
        try:
            for name, module in hosts.loaded_modules():
                for attribute, value in list(vars(module).items()):
                    original, ours = self._pairs.get(id(value), (None, None))
                    if original is value and ours is not None:
                        setattr(module, attribute, ours)
                        self._bound.append((module, attribute, original, ours))
                        self.report.bound.append(f"{name}.{attribute} -> {ours.__module__}.{ours.__name__}")
            for original, ours in managers.items():
                for manager in _instances((original,)):
                    self._adopt(manager, ours)
        except BaseException:
            self._unbind()
            raise
        self.report.families = sorted({host.family.name for host in loaded_hosts})
        self.report.adopted = len(self._adopted)
        self.report.left = [f"{_name(x)}, a subclass of {_name(original)}" for x, original in left.items()]

    def _adopt(self, manager: Any, ours: Any) -> None:
        before = dict(vars(manager))
        self._adopted.append((manager, type(manager), before))
        vars(manager).clear()
        manager.__class__ = ours
        manager._take_over(before)

    def _unbind(self) -> None:
        for manager, cls, before in self._adopted:
            if not _engaged(manager):
                vars(manager).clear()
                manager.__class__ = cls
                vars(manager).update(before)
        self._adopted.clear()
        originals = {id(ours): original for original, ours in self._pairs.values()}
        for module, attribute, original, ours in reversed(self._bound):
            if vars(module).get(attribute) is ours:
                setattr(module, attribute, original)
        for _, module in hosts.loaded_modules():  # modules imported since
            for attribute, value in list(vars(module).items()):
                if id(value) in originals:
                    setattr(module, attribute, originals[id(value)])

    def _nothing(self) -> str:
        patched = [handle.target for handle in _active]
        if any(
            self.target is None or hosts.within(self.target, x) or hosts.within(x or "", self.target) for x in patched
        ):
            return "patched already: undo the other handle first, or use it"
        where = "no loaded module holds" if self.target is None else f"{self.target!r} does not hold"
        return (
            f"nothing to patch: {where} the memory code of XMem, Track-Anything, Cutie or rf-cutie; import the host "
            'before, or name its package: xmemk.patch("cutie")'
        )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _instances(classes: tuple[type, ...]) -> Iterator[Any]:
    for x in gc.get_objects():
        if type(x) in classes:
            yield x


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _engaged(manager: Any) -> bool:
    """Whether a manager of any family, the host's or ours, holds objects."""
    store = getattr(manager, "work_mem", None)
    return store is not None and bool(store.engaged())
