"""Modules under the names of earlier versions, so that what was pickled with them still loads.

A finder at the end of ``sys.meta_path`` is asked only for what nobody else has. Classes that were
renamed have their old name beside the new one, in their own module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULES = {
    f"{__package__}.{old}": f"{__package__}.{new}"
    for old, new in {
        "inference": "video.tracker",
        "reference.backbone": "network.backbone",
        "reference.network": "network.network",
        "stopwatch": "measure.stopwatch",
    }.items()
}


class _Renamed:  # importlib.abc has bases for this, but takes long to load
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MODULES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # the usual one

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(_MODULES[module.__name__])


sys.meta_path.append(_Renamed())
