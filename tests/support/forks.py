"""Forks of hosts: copies of a host's files with some lines changed, importable under a new name."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

Edits = Sequence[tuple[str, str]]  # patterns and what replaces them


def import_fork(
    folder: Path, name: str, sources: Mapping[str, str], edits: Mapping[str, Edits], imports: Edits = ()
) -> list[ModuleType]:
    """Writes and imports a package, and returns its modules.

    sources: module -> text. edits: module -> [(pattern, replacement)], whose patterns must occur.
    imports: (pattern, replacement) for all modules.
    """
    for module, text in sources.items():
        for pattern, replacement in edits.get(module, ()):
            text, count = re.subn(pattern, replacement, text)
            assert count, f"{module}: nothing matches {pattern!r}"
        for pattern, replacement in imports:
            text = re.sub(pattern, replacement, text)
        path = folder / name / (module.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return [importlib.import_module(f"{name}.{module}") for module in sources]


def forget(folder: Path, name: str) -> None:
    """Removes a fork from the loaded modules and the path."""
    for module in [x for x in sys.modules if x.split(".")[0] == name]:
        del sys.modules[module]
    sys.path[:] = [x for x in sys.path if x != str(folder)]


def xmem_fork(folder: Path, name: str, **edits: Edits) -> dict[str, ModuleType]:
    """A fork of the stand-in for XMem: its modules memory_manager and inference_core."""
    home = Path(__file__).parent / "hosts" / "xmem_like"
    sources = {path.stem: path.read_text() for path in sorted(home.glob("*.py"))}
    order = ("memory_util", "kv_memory_store", "memory_manager", "inference_core")
    modules = import_fork(folder, name, {x: sources[x] for x in order}, edits)
    return dict(zip(order, modules))


def cutie_fork(folder: Path, name: str, **edits: Edits) -> dict[str, ModuleType]:
    """A fork of the installed rf-cutie: its modules, by the last part of their names."""
    home = Path(importlib.import_module("cutie").__path__[0])
    inference = [f"inference.{x}" for x in ("kv_memory_store", "memory_manager", "inference_core")]
    order = ["model.utils.memory_utils", *inference]
    sources = {x: (home / (x.replace(".", "/") + ".py")).read_text() for x in order}
    imports = [(rf"from cutie\.{re.escape(x)} ", f"from {name}.{x} ") for x in order]
    full = {x: edits.get(x.split(".")[-1], ()) for x in order}
    modules = import_fork(folder, name, sources, full, imports)
    return {x.split(".")[-1]: module for x, module in zip(order, modules)}
