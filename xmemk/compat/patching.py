"""``xmemk.patch``: replaces a host's memory code in place, and restores it.

Names are rebound in loaded modules by the identity of their values, so ``from x import
MemoryManager as M`` is found wherever it stands. Modules imported later take what the host's own
module holds by then. Attributes of classes, closures and containers are not searched.
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, ModuleType, TracebackType
from typing import Any

from . import hosts
from .recognition.bodies import methods_of
from .recognition.targets import Target, half_imported, loaded_modules
from .replacements import replacements
from .report import PatchReport

_GROUPS = ("xmem", "exact")
_FUNCTIONS = (True, False, "only")
_lock = threading.RLock()
_active: list[_Binding] = []


def patch(
    target: str | ModuleType | None = None,
    *,
    verify: bool = False,
    groups: str = "xmem",
    backend: str = "auto",
    functions: bool | str = True,
    trust: str | Iterable[str] = (),
    exist_ok: bool = False,
) -> Patch:
    """Replaces the memory code of XMem, Cutie, DEVA, MatAnyone and of their copies and forks.

    ``with xmemk.patch(): ...`` around existing code, or ``handle = xmemk.patch(); ...;
    handle.undo()``. The host must be imported before, or be named.

    target: a package, module or folder on the path ("cutie", "tracker", "inference"), or a module
        object. Its memory code is imported under the names by which its own frame loop does, and
        only what lies below it is replaced, whatever name it was loaded by. None replaces whatever
        is loaded.
    verify: runs the host's own code beside ours on every read and every add, and raises
        VerificationError where they differ by more than rounding explains
        (:mod:`xmemk.compat.verify`). Slow, and the host's stores need their memory, too.
    groups: for XMem and Track-Anything, "xmem", equal to the host, or "exact", correct for objects
        that join late.
    backend: as in :func:`xmemk.memory_read`; for managers.
    functions: True also replaces get_similarity, do_softmax, get_affinity and readout, and with
        them serves a host whose manager is not known. "only" leaves every manager to the host: such
        a patch has no state, and may be made and undone in mid-video. False replaces managers
        alone.
    trust: fingerprints of code that no known version has, as the report of a clean run with
        ``verify`` names them.
    exist_ok: shares a patch that exists already with the same options, and is undone with its last
        handle.

    Returns a handle whose ``repr`` and ``report`` say what was bound, and at which level.

    Existing managers that hold no object yet are taken over. Subclasses of a host's manager under
    another name stay on the host's own code; the report lists them as ``left``. Managers of XMem
    can be pickled and loaded without a patch, though not as instances of XMem's class. Managers of
    other hosts and of ``verify`` cannot be pickled.

    RuntimeError when there is nothing to bind that is in use, when the host is patched already or
    is being imported, when one of its managers holds objects, or when a thread is inside one.
    UnknownHost (a RuntimeError) when neither signatures and code of a manager nor its functions are
    known, or when a class named MemoryManager derives from a host's. A call that raises has changed
    nothing.
    """
    if target is not None and not isinstance(target, (str, ModuleType)):
        raise TypeError(f"target: wanted a module, its name or None, got {type(target).__name__}")
    if groups not in _GROUPS:
        raise ValueError(f"groups: wanted one of {', '.join(map(repr, _GROUPS))}, got {groups!r}")
    if verify and groups != "xmem":
        raise ValueError('groups: wanted "xmem" with verify, since "exact" is meant to differ from the host')
    if functions not in _FUNCTIONS:
        raise ValueError(f'functions: wanted True, False or "only", got {functions!r}')
    options = hosts.Options(groups, verify, backend, functions, _fingerprints(trust))
    with _lock:
        place = Target(target)
        if isinstance(target, str):
            place.load()
        binding = _Binding(place, options)
        shared = [x for x in _active if exist_ok and x.options == options and x.target.overlaps(place)]
        if binding.bind(may_be_empty=bool(shared)):
            _active.append(binding)
            shared.append(binding)
        for x in shared:
            x.handles += 1
        return Patch(place.name, shared)


class Patch:
    """The handle that :func:`patch` returns: a context manager that undoes the patch."""

    def __init__(self, target: str | None, bindings: list[_Binding]) -> None:
        self.target = target
        self.report: PatchReport = bindings[-1].report
        self._bindings = bindings

    @property
    def active(self) -> bool:
        """Whether this handle was not undone."""
        return bool(self._bindings)

    def undo(self) -> None:
        """Restores the host's originals, also in modules imported since.

        A second call does nothing. What other handles share stays until the last is undone. A
        manager of ours that holds objects continues its video.
        """
        with _lock:
            for binding in self._bindings:
                binding.handles -= 1
                if not binding.handles:
                    binding.unbind()
                    _active.remove(binding)
            self._bindings = []

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

    def __repr__(self) -> str:
        return str(self.report) + ("" if self.active else "\n  undone")


class _Binding:
    """Names bound to ours, and managers taken over, for one or more handles."""

    def __init__(self, target: Target, options: hosts.Options) -> None:
        self.target = target
        self.options = options
        self.report = PatchReport(verify=options.verify)
        self.handles = 0
        self._bound: list[tuple[ModuleType, str, Any, Any]] = []  # module, name, original, ours
        self._pairs: dict[int, tuple[Any, Any]] = {}  # id(original) -> original, ours
        self._adopted: list[tuple[Any, Any, dict[str, Any]]] = []  # manager, its class, its attributes before

    def bind(self, may_be_empty: bool) -> bool:
        """Binds all that was found. Whether there was anything, which it must, or may not."""
        findings = hosts.find(self.target, self.options)
        if not findings.hosts:
            if may_be_empty:
                return False
            raise RuntimeError(self._nothing())
        for host in findings.hosts:
            self._pairs |= replacements(host, self.options, self.report)
        managers = {original: ours for original, ours in self._pairs.values() if isinstance(original, type)}
        gc.collect()  # unreferenced managers and subclasses do not count
        left = {x: original for original in managers for x in hosts.subclasses(original)}
        with _no_thread_switch():
            self._refuse_busy((*managers, *left))
            try:
                self._bind_names()
                for original, ours in managers.items():
                    for manager in _instances((original,)):
                        self._adopt(manager, ours)
            except BaseException:
                self.unbind()
                raise
        self._describe(findings, left)
        return True

    def unbind(self) -> None:
        """Restores all that can be; managers of ours that are in use stay."""
        busy = _threads_inside([type(manager) for manager, _, _ in self._adopted])
        for manager, cls, before in self._adopted:
            if not busy and not _engaged(manager):
                vars(manager).clear()
                manager.__class__ = cls
                vars(manager).update(before)
        self._adopted.clear()
        originals = {id(ours): original for original, ours in self._pairs.values()}
        for module, attribute, original, ours in reversed(self._bound):
            if vars(module).get(attribute) is ours:
                setattr(module, attribute, original)
        for _, module in loaded_modules():  # modules imported since
            for attribute, value in list(vars(module).items()):
                if id(value) in originals:
                    setattr(module, attribute, originals[id(value)])
        for fingerprint in self.report.trust:
            print(f"xmemk: verified without a difference; from now on: xmemk.patch(..., trust={fingerprint!r})")

    def _bind_names(self) -> None:
        for name, module in loaded_modules():
            for attribute, value in list(vars(module).items()):
                original, ours = self._pairs.get(id(value), (None, None))
                if original is value and ours is not None:
                    setattr(module, attribute, ours)
                    self._bound.append((module, attribute, original, ours))
                    self.report.bound.append(f"{name}.{attribute} -> {ours.__module__}.{ours.__name__}")

    def _refuse_busy(self, managers: tuple[type, ...]) -> None:
        engaged = [x for x in _instances(managers) if _engaged(x)]
        if engaged:
            raise RuntimeError(
                f"{len(engaged)} memory managers of {type(engaged[0]).__module__} hold objects already, which would "
                'stay behind; patch before the first frame, or after clear_memory(), or with functions="only"'
            )
        if _threads_inside(managers):
            raise RuntimeError(
                f"a thread is inside a memory manager of {managers[0].__module__}; patch between two frames"
            )

    def _adopt(self, manager: Any, ours: Any) -> None:
        before = dict(vars(manager))
        self._adopted.append((manager, type(manager), before))
        vars(manager).clear()
        manager.__class__ = ours
        manager._take_over(before)

    def _describe(self, findings: hosts.Findings, left: dict[type, type]) -> None:
        report = self.report
        report.families = sorted({host.family.name for host in findings.hosts})
        report.levels = {host.where: host.level for host in findings.hosts}
        report.untrusted = {host.where: host.fingerprint for host in findings.hosts if host.unknown}
        report.adopted = len(self._adopted)
        report.left = [f"{_name(x)}, a subclass of {_name(original)}" for x, original in left.items()]
        report.left += findings.left

    def _nothing(self) -> str:
        if any(self.target.overlaps(binding.target) for binding in _active):
            return "patched already: undo the other handle first, or use it, or share it with exist_ok=True"
        name = self.target.name
        for module, _ in loaded_modules():
            if self.target.name is not None and self.target.holds(module) and half_imported(module):
                return f"nothing to patch: {module} is being imported now; call patch when its import is done"
        where = "no loaded module holds" if name is None else f"{name!r} does not hold"
        return (
            f"nothing to patch: {where} the memory code of XMem, Track-Anything, Cutie, rf-cutie, DEVA or MatAnyone; "
            'import the host before, or name its package: xmemk.patch("cutie")'
        )


def _fingerprints(trust: str | Iterable[str]) -> frozenset[str]:
    given = [trust] if isinstance(trust, str) else list(trust)
    for digits in given:
        if not isinstance(digits, str) or not re.fullmatch("[0-9a-f]{16}", digits):
            raise ValueError(
                f"trust: wanted fingerprints of 16 hexadecimal digits, as a report has them, got {digits!r}"
            )
    return frozenset(given)


@contextlib.contextmanager
def _no_thread_switch() -> Iterator[None]:
    """Other threads do not run meanwhile, unless PyTorch lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _threads_inside(classes: Iterable[type]) -> bool:
    """Whether another thread runs a method of one of these classes."""
    codes = {method.__code__ for cls in classes for method in methods_of(cls).values()}
    for thread, frame in sys._current_frames().items():
        if thread == threading.get_ident():
            continue
        inner: FrameType | None = frame
        while inner is not None:
            if inner.f_code in codes:
                return True
            inner = inner.f_back
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
