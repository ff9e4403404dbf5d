"""Names of earlier versions, so that what was pickled with them still loads."""

from __future__ import annotations

import sys

from .measure import stopwatch
from .network import backbone, network
from .video import tracker

_MODULES = {
    "inference": tracker,
    "reference.backbone": backbone,
    "reference.network": network,
    "stopwatch": stopwatch,
}

for _name, _module in _MODULES.items():
    sys.modules.setdefault(f"xmemk.{_name}", _module)
