"""Names of earlier versions, so that what was pickled with them still loads."""

from __future__ import annotations

import sys

from .compat import hosts, replacements
from .measure import stopwatch
from .memory import checks, cuda_graphs, exact, graph, rules, sensory, shared
from .network import backbone, network
from .video import tracker

# Modules: old name -> module.
_MODULES = {
    "inference": tracker,
    "reference.backbone": backbone,
    "reference.network": network,
    "stopwatch": stopwatch,
}

# Classes and their makers: (module where pickles look, old name) -> class.
_CLASSES = {
    (hosts, "_xmem_manager"): replacements._xmem_manager,
    (checks, "Layout"): checks.FrameLayout,
    (exact, "Bucket"): exact.ExactBucket,
    (exact, "ExactGroups"): exact.SeparateGroups,
    (graph, "CudaGraphs"): cuda_graphs.CudaGraphs,
    (rules, "Rules"): rules.MemoryRules,
    (sensory, "Sensory"): sensory.SensoryMemory,
    (shared, "Late"): shared.LateGroup,
}

for _name, _module in _MODULES.items():
    sys.modules.setdefault(f"xmemk.{_name}", _module)
for (_module, _name), _class in _CLASSES.items():
    setattr(_module, _name, _class)
