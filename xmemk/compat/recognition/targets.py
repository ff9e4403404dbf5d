"""What a target names: the copy of a host's memory code that its application uses.

One file may be loaded twice, under two names. Track-Anything, for example, has ``tracker/`` on its
path, and uses ``inference.memory_manager`` where ``tracker.inference.memory_manager`` exists too.
So modules belong to a target by their files, and the name to import is the one by which the host's
own frame loop imports its memory.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

# Where the hosts keep their memory code, below the package or folder named as a target.
_MANAGERS = ("inference.memory_manager", "memory_manager")
_FUNCTIONS = (
    "model.memory_util",
    "model.memory_utils",
    "model.utils.memory_utils",
    "memory_util",
    "utils.memory_utils",
)


class Target:
    """A package, module or folder on the path by its name, a module object, or all that is loaded.

    ModuleNotFoundError for a name that cannot be imported.
    """

    def __init__(self, target: str | ModuleType | None) -> None:
        self.name = target.__name__ if isinstance(target, ModuleType) else target
        self._places: list[str] = []  # real paths of its folders, or of its file
        if isinstance(target, ModuleType):
            self._places = _real(getattr(target, "__path__", None) or [getattr(target, "__file__", None)])
        elif target is not None:
            spec = _spec(target)
            if spec is None:
                raise ModuleNotFoundError(f"target: wanted a host that can be imported, found no module {target!r}")
            self._places = _real(spec.submodule_search_locations or [spec.origin])

    def holds(self, name: str, file: str | None = None) -> bool:
        """Whether a module belongs to the target, by its name or its file."""
        if self.name is None or name == self.name or name.startswith(self.name + "."):
            return True
        return self._covers(_real([file]))

    def holds_module(self, name: str, module: ModuleType | None) -> bool:
        """:meth:`holds`, with the file of the module."""
        return self.holds(name, getattr(module, "__file__", None))

    def overlaps(self, other: Target) -> bool:
        """Whether one of the two lies below the other, by name or by file."""
        if self.name is None or other.name is None:
            return True
        by_name = self.holds(other.name) or other.holds(self.name)
        return by_name or self._covers(other._places) or other._covers(self._places)

    def _covers(self, paths: list[str]) -> bool:
        return any(x == place or x.startswith(place + os.sep) for x in paths for place in self._places)

    def load(self) -> None:
        """Imports the memory code under the names by which the host's own frame loop does.

        RuntimeError where those names stand for other files, or for none.
        """
        assert self.name is not None
        importlib.import_module(self.name)
        prefix, other = f"{self.name}.", None
        for folder in self._places:
            for place in _MANAGERS:
                file = Path(folder, *place.split(".")).with_suffix(".py")
                own = own_name(file)
                if own is not None and self._stands_for(own, file):
                    prefix = own.removesuffix(place)
                    importlib.import_module(own)
                    importlib.import_module(own.rsplit(".", 1)[0] + ".inference_core")
                elif own is not None:
                    other = other or (folder, file, own)
        if other is not None and prefix == f"{self.name}." and not self.holds(other[2]):
            folder, file, own = other
            raise RuntimeError(
                f"nothing in use can be patched: {file.with_name('inference_core.py')} imports its memory as {own!r}, "
                f"which is not {file} here; call patch after the application's imports, or put {folder} on sys.path as "
                "the application does"
            )
        for place in (*_MANAGERS, *_FUNCTIONS):
            spec = _spec(prefix + place)
            if spec is not None and self.holds(prefix + place, spec.origin) and not _is_loaded(spec.origin):
                importlib.import_module(prefix + place)

    def _stands_for(self, name: str, file: Path) -> bool:
        spec = _spec(name)
        return spec is not None and _real([spec.origin]) == _real([str(file)])


def loaded_modules() -> Iterator[tuple[str, ModuleType]]:
    """All loaded modules that are not ours, by name."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, ModuleType) and name.split(".")[0] != "xmemk":
            yield name, module


def own_name(manager_file: Path) -> str | None:
    """The name by which the frame loop beside a manager's file imports it.

    None where there is no such file, or where it imports the manager by a relative name.
    """
    core = manager_file.with_name("inference_core.py")
    try:
        tree = ast.parse(core.read_text(encoding="utf-8", errors="replace"))
    except (OSError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = {alias.name for alias in node.names}
            if node.module.split(".")[-1] == manager_file.stem and "MemoryManager" in names:
                return node.module
    return None


def in_use(manager: type) -> bool:
    """Whether a host's frame loop uses this class, or any other module than its own holds it."""
    home = sys.modules.get(manager.__module__)
    file = getattr(home, "__file__", None)
    own = own_name(Path(file)) if file else None
    if own is None or own == manager.__module__:
        return True
    return any(
        value is manager for name, module in loaded_modules() if name != manager.__module__ for value in _values(module)
    )


def half_imported(name: str) -> bool:
    """Whether a module is being imported now, so that some of its names do not exist yet."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _values(module: ModuleType) -> list[object]:
    return list(vars(module).values())


def _is_loaded(file: str | None) -> bool:
    path = _real([file])
    return bool(path) and any(_real([getattr(module, "__file__", None)]) == path for _, module in loaded_modules())


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ModuleNotFoundError, AttributeError, ValueError):  # a parent is missing, is no package, or has no spec
        return None


def _real(paths: Iterable[str | None]) -> list[str]:
    return [os.path.realpath(path) for path in paths if isinstance(path, str)]
