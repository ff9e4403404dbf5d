"""The stateless functions a memory is built on."""

from __future__ import annotations

from typing import Any

from .. import api


class PublicFunctions:
    """Those of :mod:`xmemk.api`, in an object that, unlike a module, can be copied and pickled with what holds it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(api, name)


PUBLIC = PublicFunctions()
